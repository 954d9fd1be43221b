"""Fine-tuning data: records of a file become conversations, conversations samples, samples the batches of a run.

records.py       file -> JSON values, one at a time
conversation.py  what is said and shown, by whom
formats.py       JSON value -> Conversation, whatever form it is in
encoding.py      Conversation -> Sample: ids and labels
plan.py          lengths -> which samples are run together, and when
collate.py       samples -> Batch of tensors
loader.py        all of it as the steps of a run, read ahead by worker threads
features.py      what a frozen vision tower makes of pictures, kept
"""
