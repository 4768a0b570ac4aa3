"""Imported by the fork server of a suite with backbone methods, besides `preload`: text models take seconds to import.

Nothing is loaded or computed here: a process forked from one with threads, or with a GPU in use, would not work.
"""

import transformers
from transformers import AutoModel, AutoTokenizer

# One model's file brings what the files of all share, which is nearly all of the time.
from transformers.models.bert import modeling_bert

__all__ = ["AutoModel", "AutoTokenizer", "modeling_bert", "transformers"]
