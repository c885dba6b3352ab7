"""Make tables, figures and HTML pages for readers, whatever their content."""
