"""Serve `synboost demo`, a page on this machine to segment and to synthesise by hand; only page.py and serve.py use gradio."""
