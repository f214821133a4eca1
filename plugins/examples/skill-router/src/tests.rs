//! What is asked of the router, and what it chooses.

use tenon_sdk::testing::{Harness, request};

use super::*;

fn chosen(harness: &Harness, text: &str) -> String {
    let request = request(text);
    match harness.route::<SkillRouter>(&request).unwrap() {
        Decision::Serve => harness.compose::<SkillRouter>(&request).unwrap().composition[0].adapter.clone(),
        Decision::Answer(text) => text,
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn content_decides() {
    let all = Harness::new().adapter("iso-date").adapter("sentiment-json").adapter("all-caps");
    let cases = [
        ("5 December 2008", "iso-date"),
        ("March 3rd, 1999", "iso-date"),
        ("12/31/1999", "iso-date"),
        ("The movie I bought is slow and rude.", "sentiment-json"),
        ("Review: the soup was warm and lovely", "sentiment-json"),
        ("Give me advice: how do I exercise well?", "all-caps"),
        ("Why is the sky blue?", "all-caps"),
        ("", "No skill fits: send a date, a review or a question."),
        ("lorem ipsum", "No skill fits: send a date, a review or a question."),
    ];
    for (text, expected) in cases {
        assert_eq!(chosen(&all, text), expected, "{text}");
    }
}

#[test]
fn only_granted_adapters_are_chosen() {
    let some = Harness::new().adapter("all-caps");
    assert!(chosen(&some, "5 December 2008").starts_with("No skill fits"));
    assert_eq!(chosen(&some, "Who are you?"), "all-caps");
}

#[test]
fn the_adapter_is_asked_as_it_was_trained() {
    let harness = Harness::new().adapter("iso-date");
    let plan = harness.compose::<SkillRouter>(&request("5 December 2008")).unwrap();
    let Prompt::Messages(messages) = plan.prompt else { panic!("the router asks with messages") };
    assert_eq!((messages[0].role.as_str(), messages[0].content.as_str()), ("system", "ISO date."));
    assert_eq!(harness.lines(), ["chose iso-date"]);
}
