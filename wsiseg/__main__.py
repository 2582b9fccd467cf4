"""``python -m wsiseg`` is ``wsiseg``."""

from wsiseg.cli import main

if __name__ == "__main__":
    main()
