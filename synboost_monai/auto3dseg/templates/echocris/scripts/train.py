"""Train one fold: python scripts/train.py run --num_epochs=3"""

from synboost_monai.auto3dseg.train import main

if __name__ == "__main__":
    main(__file__)
