"""`train CONFIG.yaml [section.key=value ...]`."""

import argparse

from dreambooth.config import describe_config, load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG.yaml", help="the run's settings; configs/ holds examples")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="settings that go over the file's")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"config keys:\n\n{describe_config()}"


def run(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.overrides)
    from dreambooth.engine import train

    return train(config)
