// Chooses an adapter by what is asked: a date, a review, a question. Answers by itself, without generating, when no skill fits.
// The same as the Rust example of this name.

import { Decision, Plan, PluginError, Policy, Prompt, type Request, catalog, log } from "tenon-sdk";

const TOKENS_DEFAULT = 48;
const WORDS_OF_A_DATE_MAX = 6;
const MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const REVIEWED = ["review", "i bought", "i like", "i love", "i hate", "the movie", "the service"];
const ASKING = ["what", "who", "why", "how", "where", "when", "give me", "tell me", "can you"];

interface Skill {
  adapter: string;
  system: string;
  fits: (text: string) => boolean;
}

/** The first that fits and is granted is taken. */
const SKILLS: Skill[] = [
  { adapter: "iso-date", system: "ISO date.", fits: isDate },
  { adapter: "sentiment-json", system: "Sentiment as JSON.", fits: isReview },
  { adapter: "all-caps", system: "Answer the question.", fits: isQuestion },
];

export default class SkillRouter extends Policy {
  override route(request: Request): Decision {
    return choose(request.text) ? Decision.serve() : Decision.answer("No skill fits: send a date, a review or a question.");
  }

  compose(request: Request): Plan {
    const skill = choose(request.text);
    if (!skill) throw new PluginError("no skill fits");
    log.info(`chose ${skill.adapter}`);
    const tokenBudget = request.maxTokens ?? TOKENS_DEFAULT;
    return new Plan(Prompt.chat(skill.system, request.text), { tokenBudget }).adapter(skill.adapter, 1.0);
  }
}

function choose(text: string): Skill | undefined {
  const lower = text.trim().toLowerCase();
  const granted = new Set(catalog.adapters().map((adapter) => adapter.alias));
  return SKILLS.find((skill) => skill.fits(lower) && granted.has(skill.adapter));
}

/** A short text with a year or day in digits, and a month's name or number. */
function isDate(text: string): boolean {
  const words = text.split(/[^\p{L}\p{N}]+/u).filter((word) => word !== "");
  const hasMonth = words.some((word) => MONTHS.some((month) => word.startsWith(month)));
  const numbers = words.filter((word) => /^[0-9]/.test(word)).length;
  return words.length <= WORDS_OF_A_DATE_MAX && ((hasMonth && numbers >= 1) || numbers >= 3);
}

function isReview(text: string): boolean {
  return REVIEWED.some((sign) => text.includes(sign));
}

function isQuestion(text: string): boolean {
  return text.endsWith("?") || ASKING.some((word) => text.startsWith(word));
}
