"""The commands of the command line, which `blocklocal.cli` puts together.

| file | commands |
|---|---|
| train | `train`, `train --resume` |
| runs | of a run that is there: `eval`, `export`, `timeline`, `track` |
| plan | `plan`, `plan --simulate` |
| compare | `compare` |
| doctor | `doctor` |
| terminal | what they share: settings among words, printing |

`tune` is in `blocklocal.sweep_command`. Nothing is imported here.
"""
