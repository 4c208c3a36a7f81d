"""`python -m dswag.cli`: the same as the command `dswag`."""

from dswag.cli import main

raise SystemExit(main())
