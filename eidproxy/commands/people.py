"""The people of the demo, their questions, and the embedded model's answers in the language of the question."""

import re
import time
from typing import NamedTuple

from eidproxy.testing.fake_router import ReceivedRequest, Script, ScriptChoice, stream, warming

TOKEN_SECONDS = 0.05
"""Time between two tokens: twenty a second, as on a Mac mini."""

LOADING_SECONDS = 12.0
"""How long `deep` takes to load, from the first request for it, which the show makes."""


class Person(NamedTuple):
    """Somebody who asks again and again."""

    name: str
    english: str
    priority: str
    pause_seconds: tuple[float, ...]
    """Pauses between an answer and the next question, used in turn."""
    questions: tuple[tuple[str, str], ...]
    """Pairs of a question and its answer."""


MOTHER = Person(
    "엄마",
    "the mother",
    "foreground",
    (6.0, 9.0, 4.0),
    (
        (
            "두부가 한 모 있어요. 저녁에 뭐 해 먹을까요?",
            "세 가지가 떠올라요.\n\n- **두부조림**: 간장, 고춧가루, 파만 있으면 돼요.\n- **된장찌개**: 감자와 호박을 "
            "같이 넣어 보세요.\n- **두부전**: 아이가 제일 좋아해요.\n\n20분 안에 먹으려면 두부조림이 좋아요.",
        ),
        (
            "내일 소풍 준비물 알려 주세요.",
            "1. 김밥과 물\n2. 돗자리\n3. 물티슈\n4. 얇은 겉옷\n\n오후에 바람이 분다고 하니 겉옷을 꼭 챙기세요.",
        ),
        ("엄마 생신 축하 문자 써 주세요.", "엄마, 생신 축하드려요! 늘 건강하시고, 이번 주말에 뵐게요. 사랑해요."),
    ),
)

CHILD = Person(
    "아이",
    "the child",
    "foreground",
    (8.0, 5.0, 11.0),
    (
        (
            "7단 외우는 거 도와줘!",
            "같이 해 봐요!\n\n| 곱셈 | 답 |\n|---|---:|\n| 7 x 3 | 21 |\n| 7 x 6 | 42 |\n| 7 x 8 | 56 |\n\n"
            "어려운 건 `7 x 8 = 56`이에요. 오륙칠팔, 56 = 7 x 8!",
        ),
        (
            "공룡은 왜 사라졌어?",
            "아주 큰 돌이 하늘에서 떨어졌기 때문이라고 해요. 먼지가 해를 가려서 풀이 자라지 "
            "못했고, 먹을 것이 없어졌어요. 그런데 모두 사라진 건 아니에요. 새가 바로 공룡의 후손이에요!",
        ),
    ),
)

NIGHT_JOB = Person(
    "밤 작업",
    "the night job",
    "background",
    (1.5, 2.5),
    tuple(
        (
            f"오늘 쌓인 메모를 요약해 줘 ({number}/4)",
            f"{number}번 묶음 요약: 장보기 목록이 두 번 적혀 있고, 병원 예약은 목요일이에요. 새로 할 일은 세 가지예요. "
            "우체국에 들르기, 화분에 물 주기, 할머니께 전화하기. 나머지는 지난주와 같아요.",
        )
        for number in range(1, 5)
    ),
)

PEOPLE = (MOTHER, CHILD, NIGHT_JOB)

WHO = "Who are you?"
HELLO = "Say hello."
_SHORT = {
    WHO: "I run on a machine at home, and nobody can tell you which one: that is the point. Every word you read came "
    "through a gate that lets one question at a time reach it.",
    HELLO: "Hello! It is my turn now, and I am done in a moment: somebody is waiting behind me.",
}

_KOREAN = """\
안녕하세요! 저는 집에 있는 컴퓨터에서 답하는 도우미예요. 이 글은 미리 적어 둔 것이지만, 줄과 화면은 진짜예요. \
지금 세 사람이 같은 모델에 묻고 있어요.

| 누가 | 무엇을 묻나요 | 차례 |
|---|---|---|
| 엄마 | 저녁 메뉴, 소풍 준비물 | 온 순서대로 |
| 아이 | 구구단, 공룡 | 온 순서대로 |
| 밤 작업 | 메모 요약 | 아무도 없을 때 |

이렇게 해 보세요.

1. 질문을 하나 더 보내면 **앞에 몇 명이 있는지** 보여요.
2. **심층**으로 물으면 모델을 깨우고, 생각한 다음에 답해요.
3. 답하는 중에 *중지*를 누르면 다음 사람이 바로 시작해요.

앱에서는 이렇게 물어요.

```python
answer = client.chat.completions.create(
    model="daily", stream=True, messages=messages
)
for chunk in answer:
    print(chunk.choices[0].delta.content or "", end="")
```
"""

_ENGLISH = """\
Hello! I am an assistant on a computer at home. This text was written beforehand, but the queue and the page are real: \
three others ask the same model now.

| who | asks for | turn |
|---|---|---|
| the mother | dinner, a picnic list | as they come |
| the child | times tables, dinosaurs | as they come |
| the night job | summaries of notes | when nobody else is there |

Try this:

1. Ask once more and see **how many are before you**.
2. Choose **deep**: the model wakes up, thinks, and then answers.
3. Press *stop* in the middle: the next in the queue begins at once.

An app asks like this:

```python
answer = client.chat.completions.create(
    model="daily", stream=True, messages=messages
)
for chunk in answer:
    print(chunk.choices[0].delta.content or "", end="")
```
"""

_THOUGHT = "The question is kind, so the answer should be. I weigh a table against a list, and take both. "
_THOUGHTS = _THOUGHT * 4
"""Long enough to see the page wait with a clock."""

_HANGUL = re.compile("[가-힣]")
_TOKEN = re.compile(r"\s*\S{1,6}|\s+")


def answer_to(question: str) -> str:
    """Return the answer to a question of the demo; for any other question, a text about what the demo shows."""
    known = _SHORT | {asked: answer for person in PEOPLE for asked, answer in person.questions}
    if question in known:
        return known[question]
    return _KOREAN if _HANGUL.search(question) else _ENGLISH


def _daily(request: ReceivedRequest) -> Script:
    return stream(*tokens(answer_to(request.question)), every=TOKEN_SECONDS)


def _deep(request: ReceivedRequest) -> Script:
    return stream(*tokens(answer_to(request.question)), every=TOKEN_SECONDS, thinking=tokens(_THOUGHTS))


def tokens(text: str) -> list[str]:
    """Split a text into pieces as a model produces them."""
    return _TOKEN.findall(text)


daily: ScriptChoice = _daily


def deep() -> ScriptChoice:
    """Return the script of `deep`: it loads on its first request, and thinks before it answers."""
    asked_at: float | None = None

    def choose(request: ReceivedRequest) -> Script:
        nonlocal asked_at
        now = time.monotonic()
        asked_at = now if asked_at is None else asked_at
        return warming() if now < asked_at + LOADING_SECONDS else _deep(request)

    return choose
