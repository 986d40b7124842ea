"""What MIMIC-III and MIMIC-IV are made of: tables, notes, codes, admission lists, experiments."""
