// Short names over the bindings that wit-bindgen makes of the contract (`policy.h`), for plugins in C. An instance lives for one
// request, so that nothing here is freed. Not here: the functions of the contract themselves, whose names are in `policy.h`.
#ifndef TENON_H
#define TENON_H

#include "policy.h"

#include <stdlib.h>
#include <string.h>

typedef exports_tenon_plugin_hooks_request_t tenon_request;
typedef exports_tenon_plugin_hooks_decision_t tenon_decision;
typedef exports_tenon_plugin_hooks_plan_t tenon_plan;
typedef exports_tenon_plugin_hooks_chunk_t tenon_chunk;
typedef exports_tenon_plugin_hooks_list_action_t tenon_actions;
typedef exports_tenon_plugin_hooks_usage_t tenon_usage;
typedef exports_tenon_plugin_hooks_ending_t tenon_ending;
typedef policy_string_t tenon_string;

// A copy of a C string.
static inline tenon_string tenon_text(const char *text) {
  tenon_string made;
  policy_string_dup(&made, text);
  return made;
}

// Fails a function of the contract: `return tenon_fail(err, "…")`. The caller of the host sees it with status 502.
static inline bool tenon_fail(tenon_string *err, const char *reason) {
  policy_string_dup(err, reason);
  return false;
}

// Answers without generating: `return tenon_answer(ret, "…")`.
static inline bool tenon_answer(tenon_decision *ret, const char *text) {
  ret->tag = TENON_PLUGIN_TYPES_DECISION_ANSWER;
  ret->val.answer = tenon_text(text);
  return true;
}

// Serves the request: `compose` is called next.
static inline bool tenon_serve(tenon_decision *ret) {
  ret->tag = TENON_PLUGIN_TYPES_DECISION_SERVE;
  return true;
}

// Refuses it, with a word of at most 64 lower-case letters, digits and `_`; the caller sees status 422.
static inline bool tenon_reject(tenon_decision *ret, const char *code, const char *reason) {
  ret->tag = TENON_PLUGIN_TYPES_DECISION_REJECT;
  ret->val.reject.code = tenon_text(code);
  ret->val.reject.reason = tenon_text(reason);
  return true;
}

// A value of the manifest's configuration, or NULL.
static inline const char *tenon_config(const char *name) {
  tenon_string key = {(uint8_t *)name, strlen(name)}, found;
  if (!tenon_plugin_config_get(&key, &found)) return NULL;
  char *text = malloc(found.len + 1);
  if (text == NULL) abort();
  if (found.len > 0) memcpy(text, found.ptr, found.len);
  text[found.len] = 0;
  return text;
}

// A line for the function's log; `level` is TENON_PLUGIN_LOG_LEVEL_INFO and the like.
static inline void tenon_log(tenon_plugin_log_level_t level, const char *text) {
  tenon_string line = {(uint8_t *)text, strlen(text)};
  tenon_plugin_log_write(level, &line);
}

// A greedy plan on the base, passed through: the conversation if there is one, else the text as one user message.
static inline tenon_plan tenon_plan_of(const tenon_request *request) {
  tenon_plan plan = {0};
  plan.prompt.tag = TENON_PLUGIN_TYPES_PROMPT_MESSAGES;
  plan.prompt.val.messages = request->messages;
  if (request->messages.len == 0) {
    tenon_plugin_types_message_t *message = malloc(sizeof *message);
    if (message == NULL) abort();
    message->role = tenon_text("user");
    message->content = request->text;
    plan.prompt.val.messages.ptr = message;
    plan.prompt.val.messages.len = 1;
  }
  plan.sampling.top_p = 1;
  plan.sampling.repetition_penalty = 1;
  plan.token_budget = request->max_tokens;
  return plan;
}

// Adds an adapter, by alias or digest, over all its modules and layers.
static inline void tenon_adapter(tenon_plan *plan, const char *adapter, float weight) {
  size_t len = plan->composition.len;
  void *grown = realloc(plan->composition.ptr, (len + 1) * sizeof *plan->composition.ptr);
  if (grown == NULL) abort();
  plan->composition.ptr = grown;
  plan->composition.len = len + 1;
  memset(&plan->composition.ptr[len], 0, sizeof *plan->composition.ptr);
  plan->composition.ptr[len].adapter = tenon_text(adapter);
  plan->composition.ptr[len].weight = weight;
  plan->composition.ptr[len].span.tag = TENON_PLUGIN_TYPES_SPAN_WHOLE;
}

// Answers a chunk with one action without text: TENON_PLUGIN_TYPES_ACTION_PASS, _HOLD or _STOP.
static inline bool tenon_act(tenon_actions *ret, uint8_t tag) {
  ret->ptr = calloc(1, sizeof *ret->ptr);
  if (ret->ptr == NULL) abort();
  ret->ptr->tag = tag;
  ret->len = 1;
  return true;
}

// Defines the post-processor of a plugin that has none of its own. Use it once, outside of any function.
#define TENON_PASS_THROUGH                                                                                                   \
  struct exports_tenon_plugin_hooks_post_processor_t {                                                                       \
    uint8_t unused;                                                                                                          \
  };                                                                                                                         \
  exports_tenon_plugin_hooks_own_post_processor_t exports_tenon_plugin_hooks_constructor_post_processor(tenon_request *r) {  \
    (void)r;                                                                                                                 \
    return exports_tenon_plugin_hooks_post_processor_new(calloc(1, sizeof(exports_tenon_plugin_hooks_post_processor_t)));    \
  }                                                                                                                          \
  bool exports_tenon_plugin_hooks_method_post_processor_chunk(exports_tenon_plugin_hooks_borrow_post_processor_t self,       \
                                                              tenon_chunk *chunk, tenon_actions *ret, tenon_string *err) {   \
    (void)self, (void)chunk, (void)err;                                                                                      \
    return tenon_act(ret, TENON_PLUGIN_TYPES_ACTION_PASS);                                                                   \
  }                                                                                                                          \
  bool exports_tenon_plugin_hooks_method_post_processor_finish(exports_tenon_plugin_hooks_borrow_post_processor_t self,      \
                                                               tenon_usage *usage, tenon_ending *ret, tenon_string *err) {   \
    (void)self, (void)usage, (void)err;                                                                                      \
    memset(ret, 0, sizeof *ret);                                                                                             \
    return tenon_act((tenon_actions *)&ret->actions, TENON_PLUGIN_TYPES_ACTION_PASS);                                        \
  }                                                                                                                          \
  void exports_tenon_plugin_hooks_post_processor_destructor(exports_tenon_plugin_hooks_post_processor_t *rep) { free(rep); }

#endif
