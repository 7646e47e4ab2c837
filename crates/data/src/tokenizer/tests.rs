//! Tokenizers: our own, trained here, and those of the Hugging Face fixtures.

use std::path::PathBuf;
use std::sync::OnceLock;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::message::Message;

/// The shared folder of fixtures, beside the repository or where `STRATA_SHARED` says.
pub(crate) fn shared(what: &str) -> Option<PathBuf> {
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared"));
    let folder = std::env::var_os("STRATA_SHARED").map_or(beside, PathBuf::from).join(what);
    if folder.exists() {
        return Some(folder);
    }
    eprintln!("SKIPPED: {} is not there; set STRATA_SHARED", folder.display());
    None
}

const TEXTS: [&str; 4] = [
    "The tide was low and the water over the bar was eleven feet deep. The water was cold.\n\n",
    "She doesn't know; they'll say 12 or 345 feet. He doesn't care, they'll see. \n",
    "Ein Café, naïve Größe, naïve Café — 日本語 und 日本語 und 🎉🎉.\r\n\tEnd of the text.",
    "the user said: the system is the assistant, the user is the system",
];

pub(crate) fn tiny() -> &'static Tokenizer {
    static TINY: OnceLock<Tokenizer> = OnceLock::new();
    TINY.get_or_init(|| train(320))
}

fn train(size: usize) -> Tokenizer {
    Tokenizer::train(TEXTS.iter().map(Ok), size).unwrap()
}

fn dialogue() -> Vec<Message> {
    vec![
        Message::new(Role::System, " Be brief.\n"),
        Message::new(Role::User, "How deep is the water?"),
        Message::new(Role::Assistant, "Eleven feet. "),
        Message::new(Role::User, "\nAnd now?"),
        Message::new(Role::Assistant, "Cold."),
    ]
}

#[test]
fn the_bytes_of_tokens_make_the_text() {
    assert!(tiny().spells_bytes());
    for text in TEXTS {
        let ids = tiny().encode_plain(text).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tiny().token_bytes(*id)).copied().collect();
        assert_eq!(bytes, text.as_bytes());
    }
    assert_eq!(tiny().token_bytes(tiny().eos_id().unwrap()), END.as_bytes());
    assert!(tiny().token_bytes(u32::MAX).is_empty());
}

#[test]
fn the_hugging_face_fixtures_are_tokenised_as_transformers_does() {
    let Some(fixtures) = shared("fixtures/hf") else { return };
    for family in ["llama", "llama3", "cohere", "gpt2", "mamba2"] {
        let folder = fixtures.join(family);
        let tokenizer = Tokenizer::load(&folder).unwrap();
        let expected: Value =
            serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
        let cases = expected["tokenization"].as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["ids"]), "{family}: {text:?}");
            assert_eq!(
                tokenizer.encode(text, false).unwrap(),
                ids(&case["ids_no_special"]),
                "{family}: {text:?}"
            );
            for (skip, field) in [(false, "decoded"), (true, "decoded_skip_special")] {
                let wanted = case[field].as_str().unwrap();
                assert_eq!(tokenizer.decode(&ids(&case["ids"]), skip).unwrap(), wanted, "{family}");
                assert_eq!(streamed(&tokenizer, &ids(&case["ids"]), skip), wanted, "{family}");
            }
        }
        for case in expected["chat"].as_array().unwrap() {
            let object = case.as_object().unwrap();
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let prompt = case["add_generation_prompt"].as_bool().unwrap();
            let known = ["messages", "add_generation_prompt", "template", "text", "ids"];
            let options = ChatOptions {
                template: object.get("template").map(|name| name.as_str().unwrap().to_string()),
                variables: object
                    .iter()
                    .filter(|(name, _)| !known.contains(&name.as_str()))
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect(),
            };
            let text = tokenizer.render_chat(&messages, prompt, &options).unwrap();
            assert_eq!(text, case["text"].as_str().unwrap(), "{family}");
            assert_eq!(tokenizer.encode(&text, false).unwrap(), ids(&case["ids"]), "{family}");
            if prompt {
                assert_eq!(
                    tokenizer.encode_prompt_with(&messages, &options).unwrap(),
                    ids(&case["ids"]),
                    "{family}"
                );
            } else {
                assert_eq!(tokenizer.encode_chat(&messages).unwrap().ids, ids(&case["ids"]), "{family}");
            }
        }
    }
}

#[test]
fn a_loaded_folder_saved_and_loaded_again_is_the_same() {
    let Some(fixtures) = shared("fixtures/hf") else { return };
    for family in ["llama", "llama3", "cohere", "gpt2", "mamba2"] {
        let first = Tokenizer::load(&fixtures.join(family)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        first.save(folder.path()).unwrap();
        let second = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(first.sha256(), second.sha256(), "{family}");
        assert_eq!(first.inner.templates.to_config(), second.inner.templates.to_config(), "{family}");
        assert_eq!((first.bos_id(), first.eos_id()), (second.bos_id(), second.eos_id()), "{family}");
    }
}

#[test]
fn fixtures_train_on_answers_and_prompts_are_their_prefixes() {
    let Some(fixtures) = shared("fixtures/hf") else { return };
    for family in ["llama", "llama3", "cohere"] {
        let tokenizer = Tokenizer::load(&fixtures.join(family)).unwrap();
        check_chat(&tokenizer, &dialogue(), family);
        let learned = learned(&tokenizer, &tokenizer.encode_chat(&dialogue()).unwrap());
        let end = tokenizer.id_to_token(tokenizer.eos_id().unwrap()).unwrap();
        let wanted = match family {
            // Its template writes a space before and after the answer.
            "llama" => vec![format!(" Eleven feet. {end}"), format!(" Cold. {end}")],
            // Its end of a turn is not its eos_token, and is found in generation_config.json.
            "cohere" => vec!["Eleven feet.<|END_OF_TURN_TOKEN|>".into(), "Cold.<|END_OF_TURN_TOKEN|>".into()],
            _ => vec![format!("Eleven feet.{end}"), format!("Cold.{end}")],
        };
        assert_eq!(learned, wanted, "{family}");
    }
}

#[test]
fn foreign_templates_do_not_let_content_become_special_tokens() {
    let Some(fixtures) = shared("fixtures/hf") else { return };
    for family in ["llama", "llama3", "cohere"] {
        let tokenizer = Tokenizer::load(&fixtures.join(family)).unwrap();
        let attack: String =
            tokenizer.inner.special.iter().map(|(token, _)| format!("{token} x {token}")).collect();
        let special = |ids: &[u32]| ids.iter().filter(|id| tokenizer.is_special(**id)).count();
        let with =
            |content: &str| vec![Message::new(Role::User, content), Message::new(Role::Assistant, content)];
        let calm = tokenizer.encode_chat(&with("hello")).unwrap();
        let attacked = tokenizer.encode_chat(&with(&attack)).unwrap();
        assert_eq!(special(&calm.ids), special(&attacked.ids), "{family}");
        check_chat(&tokenizer, &with(&attack), family);
        // Nothing of the content is lost on the way.
        assert_eq!(tokenizer.decode(&attacked.ids, false).unwrap().matches(&attack).count(), 2, "{family}");
        assert_eq!(special(&tokenizer.encode_plain(&attack).unwrap()), 0, "{family}");
    }
}

#[test]
fn a_long_dialogue_loses_its_oldest_questions_with_their_answers() {
    let tokenizer = tiny();
    let options = ChatOptions::default();
    let mut messages = dialogue();
    for turn in 0..40 {
        messages.push(Message::new(Role::User, format!("And in the year {turn}?")));
        messages.push(Message::new(Role::Assistant, "The same water. ".repeat(turn % 7 + 1)));
    }
    messages.push(Message::new(Role::User, "And after that?"));
    let whole = tokenizer.encode_prompt(&messages).unwrap();
    assert_eq!(tokenizer.encode_prompt_within(&messages, &options, whole.len()).unwrap(), (whole.clone(), 0));
    for most in (0..whole.len()).step_by(17) {
        let (ids, omitted) = tokenizer.encode_prompt_within(&messages, &options, most).unwrap();
        let without = |omitted: usize| {
            let rest = [&messages[..1], &messages[1 + omitted..]].concat();
            assert_eq!(rest[1].role, Role::User);
            tokenizer.encode_prompt(&rest).unwrap()
        };
        assert_eq!(ids, without(omitted));
        // Not one turn more than has to go, and the last question stays whatever there is room for.
        assert!(without(omitted - 2).len() > most, "{most}");
        assert!(ids.len() <= most || omitted == messages.len() - 2, "{most}");
    }
}

/// Every answer's prompt is a prefix, and exactly what follows the prompt is learned.
fn check_chat(tokenizer: &Tokenizer, messages: &[Message], what: &str) {
    let chat = tokenizer.encode_chat(messages).unwrap();
    assert_eq!(chat.ids.len(), chat.loss_mask.len());
    let mut unlearned = chat.loss_mask.clone();
    for (index, message) in messages.iter().enumerate() {
        if message.role != Role::Assistant {
            continue;
        }
        let prompt = tokenizer.encode_prompt(&messages[..index]).unwrap();
        assert!(chat.ids.starts_with(&prompt), "{what}: message {index}");
        assert!(!chat.loss_mask[prompt.len() - 1], "{what}: message {index}");
        let answer = chat.loss_mask[prompt.len()..].iter().take_while(|learn| **learn).count();
        assert!(answer > 0, "{what}: message {index}");
        let last = chat.ids[prompt.len() + answer - 1];
        assert!(tokenizer.eos_ids().contains(&last), "{what}: message {index} ends with its end token");
        unlearned[prompt.len()..prompt.len() + answer].fill(false);
    }
    assert!(!unlearned.contains(&true), "{what}: only answers are learned");
}

/// The texts of the stretches that are learned.
fn learned(tokenizer: &Tokenizer, chat: &ChatTokens) -> Vec<String> {
    let mut stretches: Vec<Vec<u32>> = Vec::new();
    let mut before = false;
    for (id, learn) in chat.ids.iter().zip(&chat.loss_mask) {
        if *learn && !before {
            stretches.push(Vec::new());
        }
        if let (true, Some(stretch)) = (*learn, stretches.last_mut()) {
            stretch.push(*id);
        }
        before = *learn;
    }
    stretches.iter().map(|ids| tokenizer.decode(ids, false).unwrap()).collect()
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> String {
    let mut decoder = StreamDecoder::new(tokenizer, skip);
    let mut text = String::new();
    for id in ids {
        if let Some(part) = decoder.push(*id).unwrap() {
            assert!(!part.is_empty());
            text += &part;
        }
    }
    text + &decoder.finish().unwrap().unwrap_or_default()
}

#[test]
fn special_tokens_come_first_and_have_fixed_ids() {
    let tokenizer = tiny();
    for (id, token) in SPECIAL_TOKENS.iter().enumerate() {
        assert_eq!(tokenizer.token_to_id(token), Some(id as u32));
        assert!(tokenizer.is_special(id as u32));
    }
    assert!(!tokenizer.is_special(7));
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_ids(), tokenizer.pad_id()), (Some(1), &[0][..], Some(2)));
    assert_eq!(tokenizer.encode("a", true).unwrap()[0], 1);
    assert_eq!(tokenizer.encode(END, false).unwrap(), [0]);
}

#[test]
fn training_twice_gives_the_same_tokenizer() {
    assert_eq!(train(400).sha256(), train(400).sha256());
}

#[test]
fn the_vocabulary_has_the_size_asked_for_or_as_many_as_repeat() {
    assert_eq!(train(300).vocab_size(), 300);
    let most = train(100_000).vocab_size();
    assert!((310..1000).contains(&most), "{most}");
    assert_eq!(train(most + 1).vocab_size(), most);
    let error = Tokenizer::train([Ok("text")], 262).unwrap_err().to_string();
    assert!(error.contains("262") && error.contains("263"), "{error}");
    assert!(Tokenizer::train(Vec::<Result<&str, DataError>>::new(), 400).is_err());
}

#[test]
fn decoders_that_look_at_the_piece_before_stream_as_they_decode() {
    // The decoder of SentencePiece models: a space for each mark but the first, bytes spelled out.
    let pieces = ["<unk>", "▁Hello", "▁world", "!", "<0xE2>", "<0x82>", "<0xAC>", "<s>"];
    let vocab: Map<String, Value> =
        pieces.iter().enumerate().map(|(id, piece)| (piece.to_string(), json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "added_tokens": [{"id": 7, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        ]},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(tokenizer.decode(&[1, 2, 3, 4, 5, 6], false).unwrap(), "Hello world!€");
    for ids in [&[7, 1, 2, 3, 4, 5, 6, 1][..], &[1, 7, 1, 4, 5], &[4, 5, 1, 2], &[4], &[2, 2, 7], &[]] {
        for skip in [false, true] {
            assert_eq!(streamed(&tokenizer, ids, skip), tokenizer.decode(ids, skip).unwrap(), "{ids:?}");
        }
    }
}

#[test]
fn the_fast_way_is_taken_by_our_tokenizers_and_by_no_others() {
    assert!(tiny().inner.fast.is_some());
    let Some(fixtures) = shared("fixtures/hf") else { return };
    for family in ["llama", "llama3", "cohere", "gpt2", "mamba2"] {
        assert!(Tokenizer::load(&fixtures.join(family)).unwrap().inner.fast.is_none(), "{family}");
    }
}

#[test]
fn real_text_has_the_ids_of_the_crate() {
    let Some(folder) = shared("data/text") else { return };
    let text = std::fs::read_to_string(folder.join("inaugural.txt")).unwrap();
    let part = crate::split::blocks(&text, 200_000)[0];
    let tokenizer = Tokenizer::train([Ok(part)], 2000).unwrap();
    assert_eq!(tokenizer.vocab_size(), 2000);
    assert_eq!(tokenizer.encode_plain(part).unwrap(), tokenizer.encode_by_crate(part).unwrap());
}

#[test]
fn long_words_have_the_ids_of_the_crate() {
    let text = format!("the water {}\nwas low {}", "the".repeat(300), "a".repeat(5000));
    assert_eq!(tiny().encode_plain(&text).unwrap(), tiny().encode_by_crate(&text).unwrap());
}

#[test]
fn every_digit_is_a_token_of_its_own() {
    let text = "1234567 and 12";
    let tokens = tiny().encode_plain(text).unwrap();
    for digit in "1234567".chars() {
        assert!(tokens.contains(&tiny().token_to_id(&digit.to_string()).unwrap()));
    }
}

#[test]
fn the_own_template_is_what_encode_chat_builds() {
    let tokenizer = tiny();
    let messages = dialogue();
    let text = tokenizer.render_chat(&messages, false, &ChatOptions::default()).unwrap();
    assert_eq!(
        text,
        "<|begin|><|system|>  Be brief.\n<|end|><|user|> How deep is the water?<|end|><|assistant|> Eleven feet. \
         <|end|><|user|> \nAnd now?<|end|><|assistant|> Cold.<|end|>"
    );
    let chat = tokenizer.encode_chat(&messages).unwrap();
    assert_eq!(chat.ids, tokenizer.encode(&text, false).unwrap());
    assert_eq!(learned(tokenizer, &chat), [" Eleven feet. <|end|>", " Cold.<|end|>"]);
    let prompt = tokenizer.render_chat(&messages[..4], true, &ChatOptions::default()).unwrap();
    assert_eq!(tokenizer.encode_prompt(&messages[..4]).unwrap(), tokenizer.encode(&prompt, false).unwrap());
    check_chat(tokenizer, &messages, "own");
}

#[test]
fn a_saved_tokenizer_is_the_same_after_loading() {
    let folder = tempfile::tempdir().unwrap();
    tiny().save(&folder.path().join("new")).unwrap();
    let loaded = Tokenizer::load(&folder.path().join("new")).unwrap();
    assert_eq!(loaded.sha256(), tiny().sha256());
    assert!(loaded.inner.own_chat.is_some());
    assert_eq!(loaded.encode_chat(&dialogue()).unwrap(), tiny().encode_chat(&dialogue()).unwrap());
    assert_eq!(loaded.encode("a b", true).unwrap(), tiny().encode("a b", true).unwrap());
}

#[test]
fn broken_tokenizer_folders_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    std::fs::write(folder.path().join("tokenizer.json"), "{\"version\": 1").unwrap();
    let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    tiny().save(folder.path()).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), "[]").unwrap();
    let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json"), "{error}");
    std::fs::write(folder.path().join("tokenizer_config.json"), "{\"chat_template\": \"{% if %}\"}").unwrap();
    assert!(matches!(Tokenizer::load(folder.path()), Err(DataError::Template { .. })));
}

#[test]
fn a_folder_without_configuration_still_loads() {
    let folder = tempfile::tempdir().unwrap();
    tiny().save(folder.path()).unwrap();
    std::fs::remove_file(folder.path().join("tokenizer_config.json")).unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!((tokenizer.eos_id(), tokenizer.bos_id()), (None, None));
    let error = tokenizer.encode_prompt(&dialogue()).unwrap_err().to_string();
    assert!(error.contains("chat_template"), "{error}");
}

#[test]
fn a_template_that_rewrites_history_serves_but_does_not_train() {
    let folder = tempfile::tempdir().unwrap();
    tiny().save(folder.path()).unwrap();
    let rewriting = "{{ messages | length }}{% for m in messages %}{{ m.content }}<|end|>{% endfor %}";
    let config = json!({"eos_token": END, "chat_template": rewriting});
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert!(matches!(tokenizer.encode_chat(&dialogue()), Err(DataError::Template { .. })));
    assert!(tokenizer.encode_prompt(&dialogue()[..4]).is_ok());
}

#[test]
fn what_follows_the_end_of_a_turn_is_not_learned() {
    let folder = tempfile::tempdir().unwrap();
    tiny().save(folder.path()).unwrap();
    let lines = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>\n' }}{% endfor %}\
                 {% if add_generation_prompt %}<|assistant|>{% endif %}";
    let config = json!({"eos_token": END, "chat_template": lines});
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    let chat = tokenizer.encode_chat(&dialogue()).unwrap();
    assert_eq!(learned(&tokenizer, &chat), ["Eleven feet. <|end|>", "Cold.<|end|>"]);
    check_chat(&tokenizer, &dialogue(), "lines");
}

fn content() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9 .,!?\n\t'é🎉日]{1,40}",
        any::<String>().prop_filter("not empty", |text| !text.is_empty()),
        proptest::collection::vec(
            prop_oneof![
                proptest::sample::select(SPECIAL_TOKENS.to_vec()),
                proptest::sample::select(vec!["<|", "|>", "end", " ", "<|<|end|>|>", "x"]),
            ],
            1..8
        )
        .prop_map(|parts| parts.concat()),
    ]
}

proptest! {
    #[test]
    fn plain_text_survives_and_holds_no_special_token(text in content()) {
        let ids = tiny().encode_plain(&text).unwrap();
        prop_assert!(ids.iter().all(|id| !tiny().is_special(*id)));
        prop_assert_eq!(tiny().decode(&ids, true).unwrap(), text.as_str());
        let bytes: u32 = ids.iter().map(|id| tiny().byte_lengths()[*id as usize]).sum();
        prop_assert_eq!(bytes as usize, text.len());
    }

    #[test]
    fn the_fast_way_gives_the_ids_of_the_crate(
        text in "([a-z ]{1,6}|the |water|\\PC|\n{1,2}|\r\n|[ \t]|'[a-zA-Z]{1,2}|[0-9]|\u{17f}|\u{1680}|日本語|🎉){0,60}"
    ) {
        prop_assert_eq!(tiny().encode_plain(&text).unwrap(), tiny().encode_by_crate(&text).unwrap());
    }

    #[test]
    fn streamed_text_is_the_decoded_text(
        ids in proptest::collection::vec(0u32..340, 0..60),
        skip in any::<bool>(),
    ) {
        prop_assert_eq!(streamed(tiny(), &ids, skip), tiny().decode(&ids, skip).unwrap());
    }

    #[test]
    fn prompts_are_prefixes_and_only_answers_are_learned(
        turns in proptest::collection::vec((0..4usize, content()), 1..6)
    ) {
        let messages: Vec<Message> =
            turns.into_iter().map(|(role, text)| Message::new(Role::ALL[role], text)).collect();
        check_chat(tiny(), &messages, "random");
        let chat = tiny().encode_chat(&messages).unwrap();
        let answered = messages.iter().filter(|m| m.role == Role::Assistant);
        let answers: String = answered.map(|m| format!(" {}", m.content)).collect();
        let learned: Vec<u32> =
            chat.ids.iter().zip(&chat.loss_mask).filter(|(_, learn)| **learn).map(|(id, _)| *id).collect();
        prop_assert_eq!(tiny().decode(&learned, true).unwrap(), answers);
    }

    #[test]
    fn another_prompt_changes_nothing_about_the_answer(one in content(), two in content(), answer in content()) {
        let learned = |prompt: &str| {
            let messages = [Message::new(Role::User, prompt), Message::new(Role::Assistant, answer.as_str())];
            let chat = tiny().encode_chat(&messages).unwrap();
            chat.ids.into_iter().zip(chat.loss_mask).filter(|(_, learn)| *learn).map(|(id, _)| id).collect::<Vec<_>>()
        };
        prop_assert_eq!(learned(&one), learned(&two));
    }

    #[test]
    fn cutting_after_line_feeds_does_not_change_tokens(text in "([a-c]{1,3}|[ \t]|\n|\r\n|!|1){0,120}", target in 4usize..30) {
        let whole = tiny().encode_plain(&text).unwrap();
        let blocks = crate::split::blocks(&text, target);
        let at_lines = blocks[..blocks.len().max(1) - 1].iter().all(|block| block.ends_with('\n'));
        let next_is_text = blocks.iter().skip(1).all(|block| !block.starts_with(char::is_whitespace));
        if at_lines && next_is_text {
            prop_assert_eq!(tiny().encode_plain_batch(&blocks).unwrap().concat(), whole);
        }
    }
}
