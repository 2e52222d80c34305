# mypy: ignore-errors
"""What a user does with each Python client, as a program in that client's environment: see test_flows.py.

python flows.py CLIENT BASE_URL  prints {"<model> <flow>": what the user sees} as JSON.

A client is a class with a method for each flow, in the words of its own documentation. A flow that raises is told as
the error, so that one table shows all that works and all that does not.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from typing import Any

FIRST, SECOND = "Say hello.", "Say it again."
ASK = "How warm is it in Seoul and in Busan?"
READINGS = {"Seoul": "21 °C", "Busan": "24 °C"}

FLOWS = ["stream", "whole", "turns", "tools", "tools_dumped", "turns_helper", "tools_helper", "turns_parsed"]

Seen = dict[str, Any]


def temperature(city: str) -> str:
    """Tell how warm it is.

    Args:
        city: The name of the city.
    """
    return READINGS[city]


SCHEMA = {
    "type": "function",
    "function": {
        "name": "temperature",
        "description": "Tell how warm it is.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def user(text: str) -> dict[str, str]:
    """A user's message."""
    return {"role": "user", "content": text}


def results(message: Any) -> list[dict[str, Any]]:
    """The messages that answer the calls of one: each tool's result."""
    return [
        {"role": "tool", "tool_call_id": call.id, "content": temperature(**json.loads(call.function.arguments))}
        for call in message.tool_calls
    ]


class OpenAIPython:
    """openai-python, whose own message is appended to what is asked next."""

    def __init__(self, base: str, model: str) -> None:
        import openai

        self.model = model
        self.completions = openai.OpenAI(base_url=base, api_key="unused", max_retries=0).chat.completions

    def create(self, messages: list[Any], **fields: Any) -> Any:
        return self.completions.create(model=self.model, messages=messages, **fields).choices[0].message

    def seen(self, message: Any) -> Seen:
        return {"text": message.content, "reasoning": getattr(message, "reasoning_content", None)}

    def stream(self) -> Seen:
        seen: Seen = {"text": "", "reasoning": None}
        for chunk in self.completions.create(model=self.model, messages=[user(FIRST)], stream=True):
            delta = chunk.choices[0].delta
            seen["text"] += delta.content or ""
            if thought := getattr(delta, "reasoning_content", None):
                seen["reasoning"] = (seen["reasoning"] or "") + thought
        return seen

    def whole(self) -> Seen:
        return self.seen(self.create([user(FIRST)]))

    def turns(self) -> Seen:
        messages: list[Any] = [user(FIRST)]
        messages += [self.create(messages), user(SECOND)]
        return self.seen(self.create(messages))

    def tools(self, kept: Any = lambda message: message) -> Seen:
        messages: list[Any] = [user(ASK)]
        message = self.create(messages, tools=[SCHEMA])
        messages += [kept(message), *results(message)]
        return self.seen(self.create(messages, tools=[SCHEMA]))

    def tools_dumped(self) -> Seen:
        """The message as `model_dump()` writes it, nulls and all."""
        return self.tools(lambda message: message.model_dump())

    def helper(self, messages: list[Any], **fields: Any) -> Any:
        with self.completions.stream(model=self.model, messages=messages, **fields) as events:
            return events.get_final_completion().choices[0].message

    def turns_helper(self) -> Seen:
        """The final message of the `.stream()` helper, put together from the chunks."""
        messages: list[Any] = [user(FIRST)]
        messages += [self.helper(messages), user(SECOND)]
        return self.seen(self.helper(messages))

    def tools_helper(self) -> Seen:
        messages: list[Any] = [user(ASK)]
        message = self.helper(messages, tools=[SCHEMA])
        messages += [message, *results(message)]
        return self.seen(self.helper(messages, tools=[SCHEMA]))

    def turns_parsed(self) -> Seen:
        """`parse()` with a schema, and its message with `parsed` appended."""
        from pydantic import BaseModel

        class Weather(BaseModel):
            city: str
            degrees: int

        def parse(messages: list[Any]) -> Any:
            done = self.completions.parse(model=self.model, messages=messages, response_format=Weather)
            return done.choices[0].message

        messages: list[Any] = [user(FIRST)]
        message = parse(messages)
        messages += [message, user(SECOND)]
        assert parse(messages).parsed == message.parsed
        return {"text": f"{message.parsed.city} {message.parsed.degrees}"}


class LangChain:
    """LangChain; a stream's chunks added up are the message of the next turn."""

    def __init__(self, base: str, model: str) -> None:
        from langchain_openai import ChatOpenAI

        self.model = ChatOpenAI(base_url=base, api_key="unused", model=model, max_retries=0, stream_usage=False)

    def added(self, model: Any, messages: list[Any]) -> Any:
        total = None
        for piece in model.stream(messages):
            total = piece if total is None else total + piece
        return total

    def stream(self) -> Seen:
        return {"text": self.added(self.model, [("user", FIRST)]).content}

    def whole(self) -> Seen:
        return {"text": self.model.invoke(FIRST).content}

    def turns(self) -> Seen:
        # The system message comes late, as LangChain's own helpers put it.
        messages: list[Any] = [("user", FIRST)]
        messages += [self.added(self.model, messages), ("system", "Be brief."), ("user", SECOND)]
        return {"text": self.model.invoke(messages).content}

    def tools(self) -> Seen:
        from langchain_core.messages import HumanMessage, ToolMessage

        model = self.model.bind_tools([temperature])
        messages: list[Any] = [HumanMessage(ASK)]
        message = self.added(model, messages)
        messages.append(message)
        messages += [ToolMessage(temperature(**call["args"]), tool_call_id=call["id"]) for call in message.tool_calls]
        return {"text": model.invoke(messages).content}


class LiteLLM:
    """The LiteLLM SDK as a caller."""

    def __init__(self, base: str, model: str) -> None:
        import litellm

        self.litellm = litellm
        self.common = {"model": f"openai/{model}", "api_base": base, "api_key": "unused", "max_retries": 0}

    def create(self, messages: list[Any], **fields: Any) -> Any:
        return self.litellm.completion(messages=messages, **self.common, **fields).choices[0].message

    def built(self, messages: list[Any], **fields: Any) -> Any:
        chunks = list(self.litellm.completion(messages=messages, stream=True, **self.common, **fields))
        return self.litellm.stream_chunk_builder(chunks, messages=messages).choices[0].message

    def seen(self, message: Any) -> Seen:
        return {"text": message.content, "reasoning": getattr(message, "reasoning_content", None)}

    def stream(self) -> Seen:
        return self.seen(self.built([user(FIRST)]))

    def whole(self) -> Seen:
        return self.seen(self.create([user(FIRST)]))

    def turns(self) -> Seen:
        messages: list[Any] = [user(FIRST)]
        messages += [self.create(messages), user(SECOND)]
        return self.seen(self.create(messages))

    def tools(self) -> Seen:
        messages: list[Any] = [user(ASK)]
        message = self.built(messages, tools=[SCHEMA])
        messages += [message, *results(message)]
        return self.seen(self.create(messages, tools=[SCHEMA]))


class PydanticAI:
    """pydantic-ai; the history is what its agent hands out."""

    def __init__(self, base: str, model: str) -> None:
        from pydantic_ai import Agent
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        named = OpenAIChatModel(model, provider=OpenAIProvider(base_url=base, api_key="unused"))
        self.agent = Agent(named)
        self.armed = Agent(named, tools=[temperature], system_prompt="Be brief.")

    def seen(self, text: str, messages: list[Any]) -> Seen:
        from pydantic_ai.messages import ThinkingPart

        thoughts = [part.content for part in messages[-1].parts if isinstance(part, ThinkingPart)]
        return {"text": text, "reasoning": "".join(thoughts) or None}

    def stream(self) -> Seen:
        async def run() -> Seen:
            async with self.agent.run_stream(FIRST) as result:
                text = "".join([piece async for piece in result.stream_text(delta=True)])
                return self.seen(text, result.all_messages())

        return asyncio.run(run())

    def whole(self, agent: Any = None, text: str = FIRST, history: Any = None) -> Seen:
        result = (agent or self.agent).run_sync(text, message_history=history)
        return self.seen(result.output, result.all_messages())

    def turns(self) -> Seen:
        return self.whole(text=SECOND, history=self.agent.run_sync(FIRST).all_messages())

    def tools(self) -> Seen:
        return self.whole(self.armed, ASK)


class OpenAIAgents:
    """The OpenAI Agents SDK with a chat completions model."""

    def __init__(self, base: str, model: str) -> None:
        from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
        from openai import AsyncOpenAI

        set_tracing_disabled(True)
        named = OpenAIChatCompletionsModel(model, AsyncOpenAI(base_url=base, api_key="unused", max_retries=0))
        self.runner = Runner
        self.agent = Agent(name="Eid", model=named)
        self.armed = Agent(name="Eid", model=named, tools=[function_tool(temperature)], instructions="Be brief.")

    def stream(self) -> Seen:
        async def run() -> Seen:
            result = self.runner.run_streamed(self.agent, FIRST)
            async for _ in result.stream_events():
                pass
            return {"text": result.final_output}

        return asyncio.run(run())

    def whole(self) -> Seen:
        return {"text": self.runner.run_sync(self.agent, FIRST).final_output}

    def turns(self) -> Seen:
        first = self.runner.run_sync(self.agent, FIRST)
        return {"text": self.runner.run_sync(self.agent, [*first.to_input_list(), user(SECOND)]).final_output}

    def tools(self) -> Seen:
        return {"text": self.runner.run_sync(self.armed, ASK).final_output}


class Smolagents:
    """smolagents; its agent wants its answer through a tool of its own, `final_answer`."""

    def __init__(self, base: str, model: str) -> None:
        from smolagents import OpenAIModel

        self.model = OpenAIModel(model_id=model, api_base=base, api_key="unused")

    def say(self, role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}]}

    def stream(self) -> Seen:
        pieces = self.model.generate_stream([self.say("user", FIRST)])
        return {"text": "".join(piece.content or "" for piece in pieces)}

    def whole(self) -> Seen:
        return {"text": self.model.generate([self.say("user", FIRST)]).content}

    def turns(self) -> Seen:
        messages: list[Any] = [self.say("user", FIRST)]
        messages += [self.model.generate(messages), self.say("user", SECOND)]
        return {"text": self.model.generate(messages).content}

    def tools(self) -> Seen:
        from smolagents import ToolCallingAgent, tool

        agent = ToolCallingAgent(tools=[tool(temperature)], model=self.model, max_steps=3, verbosity_level=0)
        return {"text": agent.run(ASK)}


class Strands:
    """Strands Agents, which always stream."""

    def __init__(self, base: str, model: str) -> None:
        from strands import Agent, tool
        from strands.models.openai import OpenAIModel

        named = OpenAIModel(client_args={"base_url": base, "api_key": "unused"}, model_id=model)
        self.agent = lambda tools=(): Agent(model=named, tools=list(tools), callback_handler=None)
        self.tool = tool(temperature)

    def seen(self, result: Any) -> Seen:
        blocks = result.message["content"]
        thoughts = [each["reasoningContent"]["reasoningText"]["text"] for each in blocks if "reasoningContent" in each]
        return {"text": str(result).strip(), "reasoning": "".join(thoughts) or None}

    def stream(self) -> Seen:
        return self.seen(self.agent()(FIRST))

    def turns(self) -> Seen:
        agent = self.agent()
        agent(FIRST)
        return self.seen(agent(SECOND))

    def tools(self) -> Seen:
        return self.seen(self.agent([self.tool])(ASK))


class Llm:
    """Simon Willison's llm; a model of one's own stands in a file of its folder."""

    def __init__(self, base: str, model: str) -> None:
        import llm

        self.model = llm.get_model(f"eid-{model}")

    def prompt(self, **fields: Any) -> Seen:
        return {"text": self.model.prompt(FIRST, **fields).text()}

    def stream(self) -> Seen:
        return self.prompt(stream=True)

    def whole(self) -> Seen:
        return self.prompt(stream=False)

    def turns(self) -> Seen:
        conversation = self.model.conversation()
        conversation.prompt(FIRST).text()
        return {"text": conversation.prompt(SECOND).text()}

    def tools(self) -> Seen:
        return {"text": self.model.chain(ASK, tools=[temperature]).text()}


CLIENTS = {
    "openai-python": OpenAIPython,
    "LangChain": LangChain,
    "LiteLLM": LiteLLM,
    "pydantic-ai": PydanticAI,
    "openai-agents": OpenAIAgents,
    "smolagents": Smolagents,
    "strands-agents": Strands,
    "llm": Llm,
}


def main(name: str, base: str) -> None:
    """Run every flow on both models, each with a client of its own."""
    found = {}
    for model in ("daily", "deep"):
        for flow in FLOWS:
            if not hasattr(CLIENTS[name], flow):
                continue
            try:
                found[f"{model} {flow}"] = getattr(CLIENTS[name](base, model), flow)()
            except Exception as error:  # noqa: BLE001 - whatever a client raises is what the table shows
                traceback.print_exc()
                found[f"{model} {flow}"] = {"error": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
