// What a user does with each JavaScript client: the same as flows.py, where the words are explained.
//
// node flows.mjs CLIENT BASE_URL  prints {"<model> <flow>": what the user sees} as JSON.

const [FIRST, SECOND] = ["Say hello.", "Say it again."];
const ASK = "How warm is it in Seoul and in Busan?";
const temperature = ({ city }) => ({ Seoul: "21 °C", Busan: "24 °C" })[city];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const described = { name: "temperature", description: "Tell how warm it is.", parameters };
const user = (content) => ({ role: "user", content });

const CLIENTS = {
  async "openai-node"(baseURL, model) {
    const { default: OpenAI } = await import("openai");
    const { completions } = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 }).chat;
    const tools = [{ type: "function", function: described }];
    const seen = ({ content, reasoning_content }) => ({ text: content, reasoning: reasoning_content });
    const create = async (messages, fields) =>
      (await completions.create({ model, messages, ...fields })).choices[0].message;
    const helper = (messages, fields) => completions.stream({ model, messages, ...fields }).finalMessage();
    const loop = async (ask) => {
      const messages = [user(ASK)];
      const message = await ask(messages, { tools });
      messages.push(message);
      for (const { id, function: called } of message.tool_calls)
        messages.push({ role: "tool", tool_call_id: id, content: temperature(JSON.parse(called.arguments)) });
      return seen(await ask(messages, { tools }));
    };
    const talk = async (ask) => seen(await ask([user(FIRST), await ask([user(FIRST)]), user(SECOND)]));
    return {
      async stream() {
        const found = { text: "", reasoning: null };
        for await (const chunk of await completions.create({ model, messages: [user(FIRST)], stream: true })) {
          const { content, reasoning_content } = chunk.choices[0].delta;
          found.text += content ?? "";
          if (reasoning_content) found.reasoning = (found.reasoning ?? "") + reasoning_content;
        }
        return found;
      },
      whole: async () => seen(await create([user(FIRST)])),
      turns: () => talk(create),
      tools: () => loop(create),
      turns_helper: () => talk(helper),
      tools_helper: () => loop(helper),
    };
  },

  async "LangChain js"(baseURL, model) {
    const { ChatOpenAI } = await import("@langchain/openai");
    const { HumanMessage, ToolMessage } = await import("@langchain/core/messages");
    const { tool } = await import("@langchain/core/tools");
    const chat = new ChatOpenAI({ model, apiKey: "unused", maxRetries: 0, streamUsage: false, configuration: { baseURL } });
    const armed = chat.bindTools([tool(temperature, { ...described, schema: parameters })]);
    const added = async (named, messages) => {
      let total;
      for await (const piece of await named.stream(messages)) total = total ? total.concat(piece) : piece;
      return total;
    };
    return {
      stream: async () => ({ text: (await added(chat, FIRST)).content }),
      whole: async () => ({ text: (await chat.invoke(FIRST)).content }),
      async turns() {
        const messages = [new HumanMessage(FIRST)];
        messages.push(await added(chat, messages), new HumanMessage(SECOND));
        return { text: (await chat.invoke(messages)).content };
      },
      async tools() {
        const messages = [new HumanMessage(ASK)];
        const message = await added(armed, messages);
        messages.push(message);
        for (const { id, args } of message.tool_calls)
          messages.push(new ToolMessage({ tool_call_id: id, content: temperature(args) }));
        return { text: (await armed.invoke(messages)).content };
      },
    };
  },

  async "AI SDK openai"(baseURL, model) {
    const { createOpenAI } = await import("@ai-sdk/openai");
    return aiSdk(createOpenAI({ baseURL, apiKey: "unused" }).chat(model));
  },

  async "AI SDK openai-compatible"(baseURL, model) {
    const { createOpenAICompatible } = await import("@ai-sdk/openai-compatible");
    return aiSdk(createOpenAICompatible({ name: "eidproxy", baseURL, apiKey: "unused" })(model));
  },
};

async function aiSdk(model) {
  const { generateText, streamText, tool, jsonSchema, stepCountIs } = await import("ai");
  const tools = { temperature: tool({ ...described, inputSchema: jsonSchema(parameters), execute: temperature }) };
  const seen = async ({ text, reasoningText }) => ({ text: await text, reasoning: await reasoningText });
  const rest = { model, maxRetries: 0, onError() {} };
  return {
    stream: async () => seen(streamText({ ...rest, prompt: FIRST })),
    whole: async () => seen(await generateText({ ...rest, prompt: FIRST })),
    async turns() {
      const messages = [user(FIRST)];
      const { response } = await generateText({ ...rest, messages });
      return seen(await generateText({ ...rest, messages: [...messages, ...response.messages, user(SECOND)] }));
    },
    tools: async () => seen(streamText({ ...rest, prompt: ASK, tools, stopWhen: stepCountIs(3) })),
  };
}

const [, , name, base] = process.argv;
const found = {};
for (const model of ["daily", "deep"]) {
  for (const [flow, run] of Object.entries(await CLIENTS[name](base, model))) {
    try {
      found[`${model} ${flow}`] = await run();
    } catch (error) {
      console.error(error);
      found[`${model} ${flow}`] = { error: `${error.name}: ${error.message}`.slice(0, 300) };
    }
  }
}
console.log(JSON.stringify(found));
