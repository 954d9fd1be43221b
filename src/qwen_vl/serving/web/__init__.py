"""The web page: `page.mount_page(app, vl)`. Only `page` and `actions` need Gradio; the rest is words, HTML and state."""
