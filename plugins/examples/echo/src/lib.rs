//! The base model as it is: the conversation goes in, the answer comes out. Start from this one.

use tenon_sdk::{Plan, Policy, Request, Result};

struct Echo;

impl Policy for Echo {
    fn compose(request: &Request) -> Result<Plan> {
        Ok(Plan::new(request.prompt()).token_budget(request.max_tokens))
    }
}

tenon_sdk::export_policy!(Echo);

#[cfg(test)]
mod tests {
    use tenon_sdk::testing::{Harness, request};
    use tenon_sdk::{Message, Prompt};

    use super::*;

    fn messages(request: &Request) -> Vec<(String, String)> {
        let plan = Harness::new().compose::<Echo>(request).unwrap();
        assert!(plan.composition.is_empty());
        let Prompt::Messages(messages) = plan.prompt else { panic!("echo asks with messages") };
        messages.into_iter().map(|message| (message.role, message.content)).collect()
    }

    #[test]
    fn text_becomes_a_user_message() {
        assert_eq!(messages(&request("hello")), [("user".into(), "hello".into())]);
    }

    #[test]
    fn a_conversation_is_passed_on() {
        let mut chat = request("and now?");
        chat.messages = vec![Message::new("system", "Be brief."), Message::new("user", "and now?")];
        assert_eq!(messages(&chat).len(), 2);
    }
}
