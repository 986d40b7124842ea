"""Evidence: which characters of a text a label rests on, and pages on which a coder reads it.

`tokens` turns attention weights into characters, `records` is what is known of a document, `page`
and `index` write it as HTML. Nothing here scores a text or opens a model.
"""
