"""The commands of the command line, which `blocklocal.cli` puts together.

| file | commands |
|---|---|
| train | `train`, `train --resume` |
| tune | `tune`, `tune --resume` |
| runs | of a run that is there: `eval`, `export`, `report`, `timeline`, `track` |
| plan | `plan`, `plan --simulate` |
| compare | `compare` |
| doctor | `doctor` |
| terminal | what they share: settings among words, printing |

Nothing is imported here.
"""
