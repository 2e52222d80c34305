// Formulas as models write them: the common part of LaTeX as MathML, which browsers draw and screen readers speak. A formula
// with anything else in it gives null, and is shown as it was written.

/** @typedef {import("./markdown.js").Node} Node */

const MAX_LENGTH = 2000;
const MAX_DEPTH = 60;

/** @param {string} list @returns {Record<string, string>} */
function table(list) {
  return Object.fromEntries(list.trim().split(/\s+/).map((pair) => /** @type {[string, string]} */ (pair.split("="))));
}

// Letters and signs that stand for themselves.
const LETTERS = table(`
  alpha=α beta=β gamma=γ delta=δ epsilon=ϵ varepsilon=ε zeta=ζ eta=η theta=θ vartheta=ϑ iota=ι kappa=κ lambda=λ mu=μ nu=ν
  xi=ξ pi=π varpi=ϖ rho=ρ varrho=ϱ sigma=σ varsigma=ς tau=τ upsilon=υ phi=ϕ varphi=φ chi=χ psi=ψ omega=ω Gamma=Γ Delta=Δ
  Theta=Θ Lambda=Λ Xi=Ξ Pi=Π Sigma=Σ Upsilon=Υ Phi=Φ Psi=Ψ Omega=Ω infty=∞ partial=∂ nabla=∇ hbar=ℏ ell=ℓ emptyset=∅
  varnothing=∅ aleph=ℵ Re=ℜ Im=ℑ imath=ı jmath=ȷ degree=°`);
const SIGNS = table(`
  times=× cdot=⋅ div=÷ pm=± mp=∓ ast=∗ star=⋆ circ=∘ bullet=∙ oplus=⊕ otimes=⊗ le=≤ leq=≤ leqslant=⩽ ge=≥ geq=≥ geqslant=⩾
  ll=≪ gg=≫ ne=≠ neq=≠ approx=≈ equiv=≡ sim=∼ simeq=≃ cong=≅ propto=∝ to=→ rightarrow=→ leftarrow=← leftrightarrow=↔
  longrightarrow=⟶ Rightarrow=⇒ Leftarrow=⇐ Leftrightarrow=⇔ implies=⟹ iff=⟺ mapsto=↦ uparrow=↑ downarrow=↓
  rightleftharpoons=⇌ in=∈ notin=∉ ni=∋ subset=⊂ subseteq=⊆ supset=⊃ supseteq=⊇ cup=∪ cap=∩ setminus=∖ forall=∀ exists=∃
  nexists=∄ neg=¬ lnot=¬ land=∧ wedge=∧ lor=∨ vee=∨ therefore=∴ because=∵ angle=∠ perp=⊥ parallel=∥ mid=∣ nmid=∤ triangle=△
  prime=′ ldots=… dots=… cdots=⋯ vdots=⋮ ddots=⋱ langle=⟨ rangle=⟩ lfloor=⌊ rfloor=⌋ lceil=⌈ rceil=⌉ lvert=| rvert=|
  vert=| Vert=‖ lVert=‖ rVert=‖ lbrace={ rbrace=} lbrack=[ rbrack=] backslash=\\ colon=:`);
// Signs whose bounds stand below and above them in a formula of its own; and those whose bounds stand beside them.
const SUMS = table("sum=∑ prod=∏ coprod=∐ bigcup=⋃ bigcap=⋂ bigoplus=⨁ bigvee=⋁ bigwedge=⋀");
const INTEGRALS = table("int=∫ iint=∬ iiint=∭ oint=∮");
const LIMITS = new Set(["lim", "max", "min", "sup", "inf", "limsup", "liminf", "argmax", "argmin"]);
const FUNCTIONS = new Set(
  `sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan log ln lg exp det dim ker gcd deg arg hom Pr`.split(" "),
);
const ACCENTS = table("hat=^ widehat=^ bar=‾ overline=‾ vec=→ overrightarrow=→ tilde=~ widetilde=~ dot=˙ ddot=¨");
const SPACES = table("quad=1em qquad=2em ,=0.167em :=0.222em ;=0.278em !=0em");
const FENCES = table("matrix=.. pmatrix=() bmatrix=[] Bmatrix={} vmatrix=|| Vmatrix=‖‖ cases={. aligned=.. array=.. gathered=..");
const IGNORED = new Set(["displaystyle", "textstyle", "limits", "nolimits", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr"]);
const DOUBLE = table("C=ℂ H=ℍ N=ℕ P=ℙ Q=ℚ R=ℝ Z=ℤ");

class Unknown extends Error {}

/** @returns {Node} */
function node(/** @type {string} */ tag, /** @type {Array<Node | string>} */ kids, /** @type {Record<string, string>} */ attrs = {}) {
  return { tag, attrs, kids };
}

const row = (/** @type {Node[]} */ kids) => (kids.length === 1 ? kids[0] : node("mrow", kids));
const sign = (/** @type {string} */ text, /** @type {Record<string, string>} */ attrs = {}) => node("mo", [text], attrs);

/** A letter at its place in another alphabet of Unicode. */
function moved(/** @type {string} */ letter, /** @type {string} */ from, /** @type {number} */ to) {
  return String.fromCodePoint(to + letter.charCodeAt(0) - from.charCodeAt(0));
}

class Reader {
  #at = 0;
  #depth = 0;

  constructor(/** @type {string} */ text, /** @type {boolean} */ block) {
    // A command, a number, a word of another script, or one character.
    /** @type {string[]} */
    this.tokens = text.match(/\\(?:[A-Za-z]+|[^])|\d+(?:\.\d+)?|\s+|[^\P{L}A-Za-z\p{Script=Greek}]+|[^]/gu) ?? [];
    this.block = block;
  }

  get #next() {
    return this.tokens[this.#at];
  }

  #skip() {
    while (/^\s/.test(this.#next ?? "")) this.#at += 1;
  }

  /** Everything up to the end, or up to one of `ends`, which is left standing. */
  read(/** @type {string[]} */ ends = []) {
    if ((this.#depth += 1) > MAX_DEPTH) throw new Unknown();
    /** @type {Node[]} */
    const found = [];
    for (;;) {
      this.#skip();
      const token = this.#next;
      if (token === undefined || ends.includes(token)) break;
      found.push(...this.#scripted());
    }
    if (ends.length && this.#next === undefined) throw new Unknown();
    this.#depth -= 1;
    return found;
  }

  /** One thing with what stands above and below it; nothing for a command that changes nothing here. */
  #scripted() {
    const token = /** @type {string} */ (this.#next);
    if (token[0] === "\\" && IGNORED.has(token.slice(1))) {
      this.#at += 1;
      return [];
    }
    const base = token === "^" || token === "_" ? node("mrow", []) : this.#atom();
    const name = token[0] === "\\" ? token.slice(1) : "";
    const stacked = this.block && (Object.hasOwn(SUMS, name) || LIMITS.has(name));
    /** @type {Record<string, Node>} */
    const scripts = {};
    for (this.#skip(); ; this.#skip()) {
      const mark = this.#next;
      if (mark === "'") {
        this.#at += 1;
        scripts["^"] = row([...(scripts["^"] ? [scripts["^"]] : []), sign("′")]);
      } else if ((mark === "^" || mark === "_") && !scripts[mark]) {
        this.#at += 1;
        scripts[mark] = this.#argument();
      } else if (mark === "\\limits" || mark === "\\nolimits") {
        this.#at += 1;
      } else {
        break;
      }
    }
    const { "_": below, "^": above } = scripts;
    let made = base;
    if (below && above) made = node(stacked ? "munderover" : "msubsup", [base, below, above]);
    else if (below) made = node(stacked ? "munder" : "msub", [base, below]);
    else if (above) made = node(stacked ? "mover" : "msup", [base, above]);
    // Between a function and its letter; a bracket stands close to it.
    const apart = (FUNCTIONS.has(name) || LIMITS.has(name)) && /^[A-Za-z0-9\\]/.test(this.#next ?? "") && this.#next !== "\\left";
    return apart ? [made, node("mspace", [], { width: SPACES[","] })] : [made];
  }

  /** What a command is about: a group, or one thing. */
  #argument() {
    if ((this.#depth += 1) > MAX_DEPTH) throw new Unknown();
    this.#skip();
    const found = this.#atom();
    this.#depth -= 1;
    return found;
  }

  /** @returns {Node} */
  #atom() {
    const token = this.#next;
    if (token === undefined) throw new Unknown();
    this.#at += 1;
    if (token === "{") {
      const inside = this.read(["}"]);
      this.#at += 1;
      return row(inside);
    }
    if (/^\d/.test(token)) return node("mn", [token]);
    if (/^[A-Za-z]$|^\p{Script=Greek}$/u.test(token)) return node("mi", [token]);
    if (/^[\p{L}\p{M}]/u.test(token)) return node("mtext", [token]);
    if (token[0] === "\\" && token.length > 1) return this.#command(token.slice(1));
    if ("}&^_#%$\\".includes(token)) throw new Unknown();
    if (token === "|") return sign(token, { stretchy: "false", lspace: "0", rspace: "0" });
    return sign(token === "-" ? "−" : token === "*" ? "∗" : token, "()[]".includes(token) ? { stretchy: "false" } : {});
  }

  /** @returns {Node} */
  #command(/** @type {string} */ name) {
    if (Object.hasOwn(LETTERS, name)) return node("mi", [LETTERS[name]]);
    if (Object.hasOwn(SIGNS, name)) return sign(SIGNS[name]);
    if (Object.hasOwn(SUMS, name)) return sign(SUMS[name]);
    if (Object.hasOwn(INTEGRALS, name)) return sign(INTEGRALS[name]);
    if (LIMITS.has(name) || FUNCTIONS.has(name)) return node("mi", [name.replace(/^(arg|lim)(?=m|s|i)/, "$1 ")]);
    if (Object.hasOwn(SPACES, name)) return node("mspace", [], { width: SPACES[name] });
    if (Object.hasOwn(ACCENTS, name)) {
      return node("mover", [this.#argument(), sign(ACCENTS[name], { stretchy: String(/^wide|^over/.test(name)) })], { accent: "true" });
    }
    if ("{}%$#&_|".includes(name)) return sign(name === "|" ? "‖" : name, { stretchy: "false" });
    switch (name) {
      case " ":
        return node("mspace", [], { width: "0.333em" });
      case "frac":
      case "dfrac":
      case "tfrac":
      case "cfrac":
        return node("mfrac", [this.#argument(), this.#argument()]);
      case "binom":
        return row([sign("("), node("mfrac", [this.#argument(), this.#argument()], { linethickness: "0" }), sign(")")]);
      case "sqrt":
        return this.#root();
      case "text":
      case "textbf":
      case "textrm":
      case "mathrm":
      case "operatorname":
        return node("mtext", [this.#words()]);
      case "mathbb":
        return node("mi", [this.#letters(/^[A-Z]+$/, (letter) => DOUBLE[letter] ?? moved(letter, "A", 0x1d538))]);
      case "mathbf":
      case "boldsymbol":
        return node("mi", [this.#letters(/^[A-Za-z]+$/, (letter) => (letter > "Z" ? moved(letter, "a", 0x1d41a) : moved(letter, "A", 0x1d400)))]);
      case "underline":
        return node("munder", [this.#argument(), sign("_", { stretchy: "true" })]);
      case "bmod":
        return sign("mod");
      case "left":
        return this.#fenced();
      case "begin":
        return this.#environment();
      default:
        throw new Unknown();
    }
  }

  #root() {
    this.#skip();
    if (this.#next !== "[") return node("msqrt", [this.#argument()]);
    this.#at += 1;
    const degree = row(this.read(["]"]));
    this.#at += 1;
    return node("mroot", [this.#argument(), degree]);
  }

  /** A group as it was written. */
  #words() {
    this.#skip();
    const begin = this.#at + 1;
    const end = this.tokens.indexOf("}", begin);
    const inside = this.tokens.slice(begin, end);
    const odd = inside.some((one) => one === "{" || (one[0] === "\\" && one !== "\\ "));
    if (this.#next !== "{" || end < 0 || odd) throw new Unknown();
    this.#at = end + 1;
    // A blank at an end of a text of MathML would be lost.
    return inside.join("").replaceAll("\\ ", " ").replace(/^ | $/g, "\u00a0");
  }

  /** Latin letters in another style. */
  #letters(/** @type {RegExp} */ known, /** @type {(letter: string) => string} */ styled) {
    this.#skip();
    const text = this.#next === "{" ? this.#words() : (this.tokens[this.#at++] ?? "");
    if (!known.test(text)) throw new Unknown();
    return text.replace(/./g, styled);
  }

  /** The sign after \left or \right; a dot is none. */
  #fence() {
    this.#skip();
    const token = this.#next ?? "";
    this.#at += 1;
    const name = token.slice(1);
    if (token === ".") return [];
    if ("()[]|/<>".includes(token) && token) return [sign(token === "<" ? "⟨" : token === ">" ? "⟩" : token)];
    if (token[0] === "\\" && "{}|".includes(name) && name) return [sign(name === "|" ? "‖" : name)];
    if (token[0] === "\\" && Object.hasOwn(SIGNS, name)) return [sign(SIGNS[name])];
    throw new Unknown();
  }

  #fenced() {
    const open = this.#fence();
    const inside = this.read(["\\right"]);
    this.#at += 1;
    return node("mrow", [...open, ...inside, ...this.#fence()]);
  }

  /** A table of formulas: a matrix, cases, lines under one another. */
  #environment() {
    const name = this.#words().replace(/\*$/, "").replace(/^(?:align|split|eqnarray)$/, "aligned").replace(/^gather$/, "gathered");
    if (!Object.hasOwn(FENCES, name)) throw new Unknown();
    if (name === "array") this.#words();
    /** @type {Node[]} */
    const rows = [];
    /** @type {Node[]} */
    let cells = [];
    for (;;) {
      cells.push(node("mtd", this.read(["&", "\\\\", "\\end"])));
      const end = this.#next;
      this.#at += 1;
      if (end === "&") continue;
      // A break after the last line begins no other.
      if (end === "\\\\" || cells.length > 1 || cells[0].kids.length) rows.push(node("mtr", cells));
      cells = [];
      if (end === "\\end") break;
    }
    this.#words();
    const [open, close] = FENCES[name];
    const fence = (/** @type {string} */ one) => (one === "." ? [] : [sign(one)]);
    const body = node("mtable", rows, name === "aligned" || name === "cases" ? { class: name } : {});
    return node("mrow", [...fence(open), body, ...fence(close)]);
  }
}

/**
 * A formula as MathML; null when there is something in it that is not known here.
 *
 * @param {string} text without its signs of beginning and end
 * @param {boolean} block whether it stands by itself
 * @returns {Node | null}
 */
export function formula(text, block) {
  if (text.length > MAX_LENGTH) return null;
  try {
    return node("math", [node("mrow", new Reader(text, block).read())], block ? { display: "block" } : {});
  } catch (error) {
    if (error instanceof Unknown) return null;
    throw error;
  }
}
