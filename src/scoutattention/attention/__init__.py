"""The method: read this folder and you have read the paper.

scout.py is a decode step. It makes scouts (predict.py), chooses blocks (choose.py), hands the absent ones to the CPU
(far.py) and moves drifted ones back between steps (recall.py). dense.py attends to blocks that are all resident, and
prompt/prefill.py is a prompt's exact attention, which also tries scouts (prompt/trial.py) and corrects them
(prompt/correction.py). step.py is what the rest of the project knows of all this, and observer.py lets an evaluation
look on.
"""
