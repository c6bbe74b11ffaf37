"""The scripted expert of LIBERO: distances to boxes, grasps, the control law, and phases on made-up poses.

Shapes: N corners of boxes.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from small_libero import Kitchen

from spatial_forcing.libero import expert as expert_module
from spatial_forcing.libero.boxes import FAR, Box, clearance, extent
from spatial_forcing.libero.expert import Expert
from spatial_forcing.libero.grasp import OPENING, RIM, RIM_DEPTH, Pose, pointing_down, rim_grasp, top_grasp
from spatial_forcing.libero.servo import CLOSE, OPEN, Servo

HAND = Pose(np.array([0.0, 0.0, 0.3]), pointing_down(0.0, np.eye(3))[0])
seeds = st.integers(0, 10_000)


def box(centre, half, turn=0.0) -> Box:
    return Box(np.array(centre, float), Rotation.from_euler("z", turn).as_matrix(), np.array(half, float))


# ---- boxes -------------------------------------------------------------------------------------------------


@given(seed=seeds)
def test_clearance_is_zero_inside_and_the_distance_outside(seed):
    draw = np.random.default_rng(seed)
    rotation_33 = Rotation.random(random_state=seed).as_matrix()
    one = Box(draw.uniform(-1, 1, 3), rotation_33, draw.uniform(0.02, 0.2, 3))
    inside_3 = one.centre_3 + rotation_33 @ (one.half_3 * draw.uniform(-0.99, 0.99, 3))
    assert clearance([one], inside_3) == 0
    off = draw.uniform(0.01, 0.5)
    beside_3 = one.centre_3 + rotation_33 @ (one.half_3 * [1, *draw.uniform(-1, 1, 2)] + [off, 0, 0])
    assert clearance([one], beside_3) == pytest.approx(off)
    assert clearance([one, Box(beside_3, rotation_33, one.half_3)], beside_3) == 0
    assert clearance([], beside_3) == FAR


@given(seed=seeds)
def test_a_pillar_holds_its_box_at_every_height(seed):
    one = Box(np.zeros(3), Rotation.random(random_state=seed).as_matrix(), np.array([0.1, 0.05, 0.02]))
    for corner_3 in one.corners_83:
        assert clearance([one.pillar], corner_3 + np.array([0, 0, 5])) < 1e-9
    low_3, high_3 = extent(one.corners_83)
    assert clearance([one.pillar], np.array([high_3[0] + 0.07, 0, 3])) == pytest.approx(0.07)
    assert (low_3 < high_3).all()


# ---- grasps ------------------------------------------------------------------------------------------------


@given(angle=st.floats(-10, 10), now=st.floats(-3, 3))
def test_pointing_down_is_a_rotation_that_turns_the_wrist_a_quarter_at_most(angle, now):
    before_33, _ = pointing_down(now, np.eye(3))
    rotation_33, turn = pointing_down(angle, before_33)
    np.testing.assert_allclose(rotation_33 @ rotation_33.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation_33) == pytest.approx(1)
    np.testing.assert_allclose(rotation_33[:, 2], [0, 0, -1], atol=1e-12)
    along = abs(rotation_33[:2, 0] @ [np.cos(angle), np.sin(angle)])
    assert along == pytest.approx(1)
    assert abs(turn) <= np.pi / 2 + 1e-9


def test_a_bowl_is_taken_by_its_rim_with_one_finger_inside():
    centre_2 = np.array([0.1, -0.2])
    grasp = rim_grasp(centre_2, 0.05, [], HAND)
    outward_2 = grasp.position_3[:2] - centre_2
    assert np.linalg.norm(outward_2) == pytest.approx(RIM)
    assert abs(outward_2 @ grasp.rotation_33[:2, 0]) == pytest.approx(RIM)
    assert grasp.position_3[2] == pytest.approx(0.05 - RIM_DEPTH)


@given(side=st.floats(0, 2 * np.pi))
def test_a_bowl_is_taken_where_nothing_stands_beside_it(side):
    away_2 = np.array([np.cos(side), np.sin(side)])
    wall = box([*(0.11 * away_2), 0.1], [0.04, 0.04, 0.1], side)
    grasp = rim_grasp(np.zeros(2), 0.05, [wall], HAND)
    outer_3 = np.array([*(grasp.position_3[:2] * (RIM + 0.06) / RIM), grasp.position_3[2]])
    assert clearance([wall], outer_3) >= 0.029


@given(turn=st.floats(0, np.pi))
def test_a_box_is_taken_across_its_narrow_side_in_its_middle(turn):
    corners_N3 = box([0.2, 0.1, 0.04], [0.02, 0.05, 0.04], turn).corners_83
    grasp = top_grasp(corners_N3, [], HAND)
    across_2 = np.array([np.cos(turn), np.sin(turn)])
    assert abs(grasp.rotation_33[:2, 0] @ across_2) > np.cos(np.deg2rad(12))
    np.testing.assert_allclose(grasp.position_3, [0.2, 0.1, 0.05], atol=1e-6)


def test_a_neighbour_at_the_narrow_side_makes_it_the_other_one():
    corners_N3 = box([0, 0, 0.04], [0.02, 0.024, 0.04]).corners_83
    neighbours = [box([sign * 0.05, 0, 0.04], [0.015, 0.05, 0.04]) for sign in (-1, 1)]
    assert abs(top_grasp(corners_N3, [], HAND).rotation_33[0, 0]) > 0.9
    assert abs(top_grasp(corners_N3, neighbours, HAND).rotation_33[1, 0]) > 0.9


def test_what_is_wider_than_the_open_fingers_is_not_taken_across_that_side():
    corners_N3 = box([0, 0, 0.04], [OPENING / 2 - 0.004, 0.06, 0.04]).corners_83
    crowded = [box([sign * 0.07, 0, 0.04], [0.02, 0.06, 0.04]) for sign in (-1, 1)]
    assert abs(top_grasp(corners_N3, crowded, HAND).rotation_33[0, 0]) > 0.9


# ---- the control law ---------------------------------------------------------------------------------------


@given(seed=seeds)
def test_the_servo_arrives_although_the_arm_sags(seed):
    """Each step the arm does what it is told, and sinks by 2 mm."""
    draw = np.random.default_rng(seed)
    goal = Pose(draw.uniform(-0.2, 0.2, 3), pointing_down(draw.uniform(-1.5, 1.5), np.eye(3))[0])
    hand, servo = HAND, Servo(goal, CLOSE)
    for _ in range(60):
        if servo.reached(hand, 0.006, 0.06):
            break
        action_7 = servo.action(hand)
        assert np.abs(action_7).max() <= 1
        assert action_7[6] == CLOSE
        turned_33 = Rotation.from_rotvec(0.5 * action_7[3:6]).as_matrix() @ hand.rotation_33
        hand = Pose(hand.position_3 + 0.05 * action_7[:3] * 0.5 - [0, 0, 0.002], turned_33)
    assert servo.reached(hand, 0.006, 0.06)


def test_at_its_goal_the_servo_does_nothing_but_hold():
    np.testing.assert_allclose(Servo(HAND, OPEN).action(HAND), [0, 0, 0, 0, 0, 0, OPEN], atol=1e-6)


# ---- phases ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["milk_1", "akita_black_bowl_1"])
@pytest.mark.parametrize("seed", range(3))
def test_the_expert_brings_an_object_to_its_target(name, seed):
    kitchen = Kitchen(name, seed)
    outcome = Expert(kitchen, kitchen.step).run()
    assert outcome.success
    assert not outcome.said
    assert outcome.steps == len(kitchen.actions) < 220
    assert {float(action[6]) for action in kitchen.actions} == {OPEN, CLOSE}
    assert np.abs(kitchen.actions).max() <= 1


def test_the_expert_stops_at_success_and_tries_again_after_a_slip():
    kitchen = Kitchen("milk_1", 0)
    steps = Expert(kitchen, kitchen.step).run().steps
    slippery = Kitchen("milk_1", 0, slips=1)
    outcome = Expert(slippery, slippery.step).run()
    assert outcome.success
    assert outcome.steps > steps


def test_the_expert_gives_up_and_says_why():
    kitchen = Kitchen("milk_1", 0, slips=99)
    outcome = Expert(kitchen, kitchen.step).run()
    assert not outcome.success
    assert outcome.said == "nothing was grasped"
    most = expert_module.ATTEMPTS * 200
    assert outcome.steps < most
