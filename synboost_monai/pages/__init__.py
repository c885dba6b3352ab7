"""Pages and tables that a person reads: sections, figures and one HTML file, whatever they are about."""
