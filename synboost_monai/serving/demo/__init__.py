"""`synboost demo`: a page on this machine to segment and to synthesise by hand. gradio stays in page.py and serve.py."""
