"""Exercises of chapter 2: forks, order, and whose array it is."""

import numpy as np

from tinyres.course.exercise import BUG, GAP, NUMBER, Exercise, Wrong, as_array

ONE = (
    "1 comes out in two ways: a second arrival took the place of the first (= for +=), or the two were averaged. What does "
    "c do "
    "when only one of the two uses of a moves?"
)
TWO = "One of the two forks was counted once. a is used twice in b, and b is used twice in c."

DIAMOND = Exercise(
    "2.1",
    "Two diamonds",
    NUMBER,
    """
    a = 1.0
    b = a + a
    c = b + b

    What is the derivative of c by a, which the backward walk leaves in a.grad? Write the number.
    """,
    4.0,
    (
        Wrong("handed on twice", "8: b handed its cotangent on twice, once before its second half had arrived.", 8.0),
        Wrong("assigned", ONE, 1.0),
        Wrong("averaged", ONE, 1.0),
        Wrong("one fork", TWO, 2.0),
        Wrong("visited once", TWO, 2.0),
        Wrong(
            "additions counted", "3 might be a count of something. Along a path slopes are multiplied; paths are added.", 3.0
        ),
        Wrong("uses counted", "6 is more than there are paths. How many ways lead from c down to a?", 6.0),
    ),
    (
        "Draw it: two wires from b up to c, and two from a up to b.",
        "If a moves by a hair, by how much does b move? And by how much does c, then?",
        "Count the ways from c to a. Each has slope 1.",
    ),
    "The engine's own tests begin with this: check_smallest_diamond in tests/test_engine_backward.py.",
    why="b moves twice as much as a, and c twice as much as b. Or: there are 2 x 2 paths from c to a, each with slope 1.",
)


def walk(graph):
    """The derivative of the last node by every node, as a list.

    graph[n] lists the inputs of node n as pairs (p, d): p is the input's number, smaller than n, and d the local derivative.
    """
    arrived = [0.0] * len(graph)
    arrived[-1] = 1.0
    for n in reversed(range(len(graph))):
        for p, d in graph[n]:
            arrived[p] = arrived[p] + arrived[n] * d
    return arrived


def recursion(graph):
    arrived = [0.0] * len(graph)
    arrived[-1] = 1.0

    def leave(n):
        for p, d in graph[n]:
            arrived[p] = arrived[p] + arrived[n] * d
        for p, _ in graph[n]:
            leave(p)

    leave(len(graph) - 1)
    return arrived


def visited_once(graph):
    arrived, seen = [0.0] * len(graph), set()
    arrived[-1] = 1.0

    def leave(n):
        if n in seen:
            return
        seen.add(n)
        for p, d in graph[n]:
            arrived[p] = arrived[p] + arrived[n] * d
        for p, _ in graph[n]:
            leave(p)

    leave(len(graph) - 1)
    return arrived


def in_order_of_arrival(graph):
    arrived, queue = [0.0] * len(graph), [len(graph) - 1]
    arrived[-1] = 1.0
    seen = set(queue)
    for n in queue:
        for p, d in graph[n]:
            arrived[p] = arrived[p] + arrived[n] * d
            if p not in seen:
                seen.add(p)
                queue.append(p)
    return arrived


def assigned(graph):
    arrived = [0.0] * len(graph)
    arrived[-1] = 1.0
    for n in reversed(range(len(graph))):
        for p, d in graph[n]:
            arrived[p] = arrived[n] * d
    return arrived


def averaged(graph):
    arrived, count = [0.0] * len(graph), [0] * len(graph)
    arrived[-1] = 1.0
    for n in reversed(range(len(graph))):
        arrived[n] = arrived[n] * (1 / max(count[n], 1))
        for p, d in graph[n]:
            arrived[p] = arrived[p] + arrived[n] * d
            count[p] += 1
    return arrived


def graphs():
    return [
        ([[], [(0, 2.0)], [(1, 3.0)]],),
        ([[], [(0, 2.0)], [(0, 5.0)], [(1, 1.0), (2, 1.0)]],),
        ([[], [(0, 1.0), (0, 1.0)], [(1, 1.0), (1, 1.0)], [(1, 3.0), (2, 1.0)]],),
        ([[], [(0, 2.0)], [(1, 3.0)], [(0, 1.0), (2, 1.0)], [(1, 1.0), (3, 1.0)]],),
        # found by a random search: it tells all the wrong walks below from one another
        ([[], [(0, 1.0)], [(1, 2.0)], [(1, 2.0), (2, 1.0)], [(2, 2.0), (3, 3.0)], [(4, 2.0)]],),
    ]


WALK = Exercise(
    "2.2",
    "The backward walk",
    GAP,
    """
    Write the walk itself. graph[n] lists the inputs of node n as pairs (p, d): p is the input's number, d the local
    derivative. An input's number is always smaller than n, and the last node is the loss. Return a list with the derivative
    of the loss by every node; of the loss itself it is 1.
    """,
    walk,
    (
        Wrong(
            "recursion",
            "Right on a chain, too large where wires meet: a node is left once per arrival, each time with all it has so "
            "far.",
            recursion,
        ),
        Wrong(
            "visited once",
            "Each node is left once, but some leave too early: before the last of their arrivals is in.",
            visited_once,
        ),
        Wrong(
            "in order of arrival",
            "A queue: whoever was reached first leaves first, even if more is to come. Being reached is not being complete.",
            in_order_of_arrival,
        ),
        Wrong("assigned", "The order is right, but a second arrival takes the place of the first.", assigned),
        Wrong(
            "averaged",
            "The order is right, and arrivals are averaged. The loss moves with every use: effects add.",
            averaged,
        ),
    ),
    (
        "Look at the third graph, the two diamonds of 2.1, and write down when node 1 may leave.",
        "Which order of nodes makes sure that all uses of a node come before the node itself?",
        "Inputs have smaller numbers, so go from the last node down to 0, and add what each sends to what its inputs have.",
    ),
    "autograd.walk is this loop, with a heap in place of the numbers. (Adding up all paths one by one is right too: in a "
    "net of "
    "54 residual blocks there are 2^54.)",
    graphs,
    read=as_array,
)


def accumulate(table, node, arriving):
    """Adds what arrives at a node to table[node]. ``arriving`` is lent: others may hold the same array."""
    if node in table:
        table[node] = table[node] + arriving
    else:
        table[node] = arriving


def in_place(table, node, arriving):
    """Adds what arrives at a node to table[node]. ``arriving`` is lent: others may hold the same array."""
    if node in table:
        table[node] += arriving
    else:
        table[node] = arriving


def replaced(table, node, arriving):
    table[node] = arriving


def first_wins(table, node, arriving):
    table.setdefault(node, arriving)


def mean_of_both(table, node, arriving):
    table[node] = (table[node] + arriving) / 2 if node in table else arriving


def into_the_arriving(table, node, arriving):
    if node in table:
        arriving += table[node]
    table[node] = arriving


def subtracted(table, node, arriving):
    table[node] = table[node] - arriving if node in table else arriving


def lend(accumulate):
    """An addition lends g to a and b; then h comes to a, and is lent to c as well; then k comes to a."""
    table: dict = {}
    g, h, k = np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    for node, array in (("a", g), ("b", g), ("a", h), ("c", h), ("a", k)):
        accumulate(table, node, array)
    return table.get("a"), table.get("b"), table.get("c"), g, h


LENT = Exercise(
    "2.3",
    "Whose array is it?",
    BUG,
    """
    An addition hands the same array to both of its inputs, so what arrives is lent. This accumulate was right in every
    test with a chain, and then a net with shortcuts trained badly. Find the bug. (The check lends an array g to nodes a
    and b; then h to a and c; then k to a. It looks at what the table holds, and at g and h.)
    """,
    accumulate,
    (
        Wrong(
            "in place", "b and the lent g changed when h arrived at a: += wrote into an array that others hold.", in_place
        ),
        Wrong("replaced", "a holds only what arrived last. What came before is lost.", replaced),
        Wrong("first wins", "a holds only what arrived first.", first_wins),
        Wrong("averaged", "Nothing is overwritten now, but arrivals are averaged. Uses add.", mean_of_both),
        Wrong(
            "into the arriving array",
            "The other way round: now what arrives is written into, and c, to which it was lent as well, changed with it.",
            into_the_arriving,
        ),
        Wrong("subtracted", "Nothing is overwritten now, but the second arrival is taken away from the first.", subtracted),
    ),
    (
        "Look at what happens to b, to which nothing was sent but g, when h arrives at a.",
        "Which line changes an array, and which only changes what the table points to?",
        "x += y writes into x's memory; x = x + y makes a new array.",
    ),
    "The engine does the same, and knows which arrays it made itself: into those it may add in place. See "
    "autograd.add_cotangents.",
    call=lend,
    returns=("a", "b", "c", "g", "h"),
    given="in place",
)

EXERCISES = (DIAMOND, WALK, LENT)
