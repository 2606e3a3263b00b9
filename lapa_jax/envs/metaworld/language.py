"""Meta-World's tasks, its suites, and what to tell a policy: five sentences of ours for each task.

The last NUM_HELD_OUT are held out from training. No two tasks share a sentence.
"""

from lapa_jax.envs.env import phrasing_numbers

NUM_TRAIN = 3
NUM_HELD_OUT = 2
NUM_PHRASINGS = NUM_TRAIN + NUM_HELD_OUT

# In the order of the benchmark, whose names end in -v3.
SENTENCES: dict[str, tuple[str, ...]] = {
    "assembly": (
        "lift the ring and put it over the peg",
        "pick up the wrench and slip its ring onto the peg",
        "place the ring around the post",
        "fit the ring of the tool over the peg",
        "thread the peg through the ring",
    ),
    "basketball": (
        "drop the ball into the basket",
        "pick up the basketball and put it through the hoop",
        "bring the ball to the hoop and let go",
        "score a basket",
        "dunk the ball",
    ),
    "bin-picking": (
        "move the block from one bin to the other",
        "pick the block up and put it in the other bin",
        "carry the cube into the empty bin",
        "transfer the block to the second bin",
        "take the cube out of its bin and drop it next door",
    ),
    "box-close": (
        "put the lid on the box",
        "pick up the cover and close the box with it",
        "place the lid over the open box",
        "cover the box",
        "shut the box by its lid",
    ),
    "button-press-topdown": (
        "press the button from above",
        "push the button down",
        "press down on the top of the button",
        "move onto the button and push it downward",
        "push the button in from the top",
    ),
    "button-press-topdown-wall": (
        "get over the wall and press the button from above",
        "push the button behind the wall down",
        "press down on the button, past the wall",
        "avoid the wall and push the button downward",
        "from the top, push in the button that the wall hides",
    ),
    "button-press": (
        "press the button",
        "push the button on the front of the box",
        "push the button in",
        "move forward into the button until it is pressed",
        "hit the button of the box",
    ),
    "button-press-wall": (
        "get around the wall and press the button",
        "push the button behind the wall",
        "press the button, past the wall",
        "avoid the wall and push the button in",
        "reach across the wall to hit the button",
    ),
    "coffee-button": (
        "press the button of the coffee machine",
        "push the coffee machine's button",
        "start the coffee machine",
        "turn the coffee maker on",
        "make a coffee by pushing the button",
    ),
    "coffee-pull": (
        "pull the mug away from the coffee machine",
        "take the mug out of the coffee machine",
        "move the cup from the coffee machine to the mark",
        "drag the mug out from under the machine",
        "fetch the cup from the coffee maker",
    ),
    "coffee-push": (
        "push the mug under the coffee machine",
        "put the mug into the coffee machine",
        "slide the cup to the coffee machine",
        "set the mug where the coffee comes out",
        "bring the cup to the coffee maker",
    ),
    "dial-turn": (
        "turn the dial",
        "rotate the dial",
        "twist the dial around",
        "give the dial a turn",
        "spin the knob of the dial",
    ),
    "disassemble": (
        "take the ring off the peg",
        "lift the wrench off the peg",
        "pull the ring up from the post",
        "remove the ring from the peg",
        "free the tool from the post",
    ),
    "door-close": (
        "close the door",
        "push the door shut",
        "shut the door of the cabinet",
        "swing the door closed",
        "make sure that the door is shut",
    ),
    "door-lock": (
        "lock the door",
        "turn the lock of the door to lock it",
        "rotate the knob until the door is locked",
        "bolt the door",
        "secure the door with its lock",
    ),
    "door-open": (
        "open the door",
        "pull the door open by its handle",
        "open the door of the cabinet",
        "swing the door open",
        "grab the handle and draw the door towards you",
    ),
    "door-unlock": (
        "unlock the door",
        "turn the lock of the door to unlock it",
        "rotate the knob until the door is unlocked",
        "unbolt the door",
        "release the lock of the door",
    ),
    "hand-insert": (
        "put the hand into the hole",
        "insert the gripper into the hole of the table",
        "move the hand down into the hole",
        "sink the gripper into the opening",
        "reach down inside the hole",
    ),
    "drawer-close": (
        "close the drawer",
        "push the drawer shut",
        "slide the drawer in",
        "shut the drawer",
        "push the drawer back into its case",
    ),
    "drawer-open": (
        "open the drawer",
        "pull the drawer open",
        "slide the drawer out",
        "draw the drawer out by its handle",
        "get the drawer open",
    ),
    "faucet-open": (
        "open the faucet",
        "turn the faucet on",
        "rotate the handle of the faucet to open it",
        "turn on the tap",
        "let the water run",
    ),
    "faucet-close": (
        "close the faucet",
        "turn the faucet off",
        "rotate the handle of the faucet to close it",
        "turn off the tap",
        "stop the water",
    ),
    "hammer": (
        "hammer the nail in",
        "pick up the hammer and hit the nail",
        "drive the nail into the box with the hammer",
        "knock the nail in with the hammer",
        "strike the nail until it is in",
    ),
    "handle-press-side": (
        "press the handle down from the side",
        "push the handle at the side down",
        "move beside the box and press its handle down",
        "from the side, lower the handle",
        "press the lever at the side of the box",
    ),
    "handle-press": (
        "press the handle down",
        "push the handle down",
        "lower the handle",
        "bring the handle of the box down",
        "weigh down on the handle",
    ),
    "handle-pull-side": (
        "pull the handle up from the side",
        "lift the handle at the side",
        "move beside the box and pull its handle up",
        "from the side, raise the handle",
        "hoist the lever at the side of the box",
    ),
    "handle-pull": (
        "pull the handle up",
        "lift the handle",
        "raise the handle",
        "bring the handle of the box up",
        "heave the handle upward",
    ),
    "lever-pull": (
        "pull the lever up",
        "lift the lever",
        "rotate the lever upward",
        "swing the lever up",
        "flip the lever to the top",
    ),
    "pick-place-wall": (
        "pick up the block and carry it over the wall to the mark",
        "lift the block past the wall and hold it at the mark",
        "bring the block to the mark behind the wall",
        "take the block across the wall to the goal",
        "get the cube over the wall to where the mark is",
    ),
    "pick-out-of-hole": (
        "pick the block out of the hole",
        "lift the block from the hole to the mark",
        "take the block out of the hole",
        "get the cube out of the opening",
        "raise the cube from the hole",
    ),
    "pick-place": (
        "pick up the block and carry it to the mark",
        "lift the block and hold it at the mark",
        "bring the block to the mark in the air",
        "grasp the cube and take it to the goal",
        "pick the cube up and place it where the mark is",
    ),
    "plate-slide": (
        "slide the plate into the net",
        "push the plate forward into the net",
        "move the puck into the goal",
        "shoot the puck into the net",
        "get the plate inside the goal",
    ),
    "plate-slide-side": (
        "slide the plate sideways into the net",
        "push the plate to the side into the net",
        "move the puck sideways into the goal",
        "shoot the puck into the net at the side",
        "get the plate inside the goal beside it",
    ),
    "plate-slide-back": (
        "slide the plate back out of the net",
        "pull the plate back from the net",
        "move the puck back out of the goal",
        "draw the puck out of the net",
        "get the plate back towards you",
    ),
    "plate-slide-back-side": (
        "slide the plate sideways out of the net",
        "pull the plate to the side, out of the net",
        "move the puck sideways out of the goal",
        "draw the puck out of the net at the side",
        "get the plate out at the side of the goal",
    ),
    "peg-insert-side": (
        "insert the peg into the hole at the side",
        "pick up the peg and push it into the box sideways",
        "put the peg into the hole of the box",
        "stick the peg into the side of the box",
        "plug the peg in",
    ),
    "peg-unplug-side": (
        "unplug the peg",
        "pull the peg out of the box sideways",
        "take the peg out of the hole at the side",
        "draw the peg out of the side of the box",
        "free the peg from its hole",
    ),
    "soccer": (
        "kick the ball into the goal",
        "push the ball into the goal",
        "roll the soccer ball into the net",
        "score a goal",
        "shoot the football between the posts",
    ),
    "stick-push": (
        "push the bottle with the stick",
        "pick up the stick and push the thermos with it",
        "use the stick to push the bottle to the mark",
        "shove the thermos away by means of the stick",
        "take the stick and move the bottle forward",
    ),
    "stick-pull": (
        "pull the bottle with the stick",
        "pick up the stick and pull the thermos with it",
        "use the stick to pull the bottle to the mark",
        "hook the thermos with the stick and drag it",
        "take the stick and draw the bottle near",
    ),
    "push": (
        "push the block to the mark",
        "slide the block to the mark on the table",
        "move the block along the table to the goal",
        "shove the cube over to the mark",
        "get the cube to the mark without lifting it",
    ),
    "push-wall": (
        "push the block around the wall to the mark",
        "slide the block past the wall to the mark",
        "move the block along the table, round the wall, to the goal",
        "shove the cube around the wall",
        "get the cube to the mark, avoiding the wall",
    ),
    "push-back": (
        "push the block back to the mark",
        "slide the block backward to the mark",
        "pull the block back along the table to the goal",
        "drag the cube towards you to the mark",
        "get the cube back to the mark",
    ),
    "reach": (
        "reach the mark",
        "move the hand to the mark",
        "go to the goal point",
        "bring the gripper to the mark",
        "touch the mark in the air",
    ),
    "reach-wall": (
        "reach the mark behind the wall",
        "move the hand past the wall to the mark",
        "go around the wall to the goal point",
        "bring the gripper to the mark, avoiding the wall",
        "touch the mark beyond the wall",
    ),
    "shelf-place": (
        "put the block on the shelf",
        "pick up the block and place it on the shelf",
        "carry the block to the shelf",
        "set the cube down on the shelf",
        "shelve the cube",
    ),
    "sweep-into": (
        "sweep the block into the hole",
        "push the block into the hole of the table",
        "slide the block until it falls into the hole",
        "brush the cube into the opening",
        "make the cube drop into the hole",
    ),
    "sweep": (
        "sweep the block off the table",
        "push the block over the edge of the table",
        "slide the block off the side of the table",
        "brush the cube away from the table",
        "clear the cube off the table",
    ),
    "window-open": (
        "open the window",
        "push the window open",
        "slide the window open by its handle",
        "move the pane of the window aside",
        "let some air in through the window",
    ),
    "window-close": (
        "close the window",
        "push the window shut",
        "slide the window closed by its handle",
        "move the pane of the window back",
        "shut the window against the draught",
    ),
}  # fmt: skip

TASKS = tuple(SENTENCES)
SUITES: dict[str, tuple[str, ...]] = {
    "mw10": (
        *("reach", "push", "drawer-open", "drawer-close", "button-press-topdown"),
        *("door-open", "window-open", "window-close", "faucet-open", "faucet-close"),
    ),
    "mt10": (
        *("reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close"),
        *("button-press-topdown", "peg-insert-side", "window-open", "window-close"),
    ),
    "mt50": TASKS,
    # Every other task of mw10: labels of these tell nothing of closing, say, what they open.
    "mw5": ("reach", "drawer-open", "button-press-topdown", "window-open", "faucet-open"),
}


def phrasings(split: str) -> range:
    """Phrasing numbers of "train", "held_out" or "all"."""
    return phrasing_numbers(split, NUM_TRAIN, NUM_PHRASINGS)


def instruction(task: str, phrasing: int) -> str:
    """The task in words."""
    if not 0 <= phrasing < NUM_PHRASINGS:
        raise ValueError(f"phrasing {phrasing} is not within 0..{NUM_PHRASINGS - 1}")
    return SENTENCES[task][phrasing]
