"""`python -m rocllm` is `rocllm`."""

from rocllm.cli import main

if __name__ == "__main__":
    main()
