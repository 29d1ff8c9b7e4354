"""Many runs from one file: subjects x variants x settings x seeds, each cell an ordinary run folder.

`fields` and `reading` say what a sweep file holds, `axes` and `subjects` read its values, `cells` makes the runs of it.
`worker` trains a cell; `local` gives cells to the processes of `pool`. `status` reads how far each one is, and
`trained` with which settings.
Nothing here imports torch before a cell is planned or trained.
"""

from dreambooth.sweep.reading import Sweep, load_sweep

__all__ = ["Sweep", "load_sweep"]
