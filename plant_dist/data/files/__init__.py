"""Files as users hold them: lines, tables, matrices, vocabularies, annotations.

Nothing here knows splits made by us, tokens or label indices.
"""
