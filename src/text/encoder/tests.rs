use super::*;
use crate::text::EndOfTurnSource;
use crate::text::byte_tokenizer;
use crate::types::Message;
use tokenizers::AddedToken;

const EXTRA: [&str; 5] = ["<s>", "</s>", "<|eot_id|>", "<|start|>", "<|end|>"];

/// Bytes are 3 + their value; `EXTRA` are 259 and up.
const BOS: u32 = 259;
const EOS: u32 = 260;
const EOT: u32 = 261;

fn folder(config: serde_json::Value, generation: serde_json::Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut tokenizer = byte_tokenizer::build([].into_iter(), &[], 259).unwrap();
    tokenizer.add_special_tokens(EXTRA.map(|token| AddedToken::from(token, true))).unwrap();
    tokenizer.save(dir.path().join("tokenizer.json"), false).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    std::fs::write(dir.path().join("generation_config.json"), generation.to_string()).unwrap();
    dir
}

fn encoder(template: &str, eos: Option<&str>, generation: serde_json::Value) -> Result<PromptEncoder> {
    let config = serde_json::json!({"chat_template": template, "bos_token": "<s>", "eos_token": eos});
    PromptEncoder::load(&EncoderFiles::of(folder(config, generation).path()))
}

fn bytes(text: &str) -> impl Iterator<Item = u32> + '_ {
    text.bytes().map(|b| 3 + u32::from(b))
}

fn user(content: &str) -> Conversation {
    vec![Message::new("user", content)].into()
}

/// Llama 3's shape in short: BOS, then `<|start|>role: content<|eot_id|>` for each message.
const LLAMA3: &str = "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}: {{ m.content | trim }}<|eot_id|>\
    {% endfor %}{% if add_generation_prompt %}<|start|>assistant: {% endif %}";

#[test]
fn a_prompt_has_bos_once_and_a_target_ends_the_turn() {
    let encoder = encoder(LLAMA3, Some("</s>"), serde_json::json!({"eos_token_id": [EOS, 1]})).unwrap();
    let prompt = encoder.encode_prompt(&user(" a ")).unwrap().token_ids;
    let want: Vec<u32> = [BOS, 262]
        .into_iter()
        .chain(bytes("user: a"))
        .chain([EOT, 262])
        .chain(bytes("assistant: "))
        .collect();
    assert_eq!(prompt, want);
    assert_eq!(
        encoder.encode_target(&user("a"), "ok").unwrap(),
        bytes("ok").chain([EOT]).collect::<Vec<_>>()
    );
    assert_eq!(encoder.end_of_turn().source, EndOfTurnSource::Template);
    assert_eq!(encoder.stop_tokens().ids(), [1, EOS, EOT]);
    assert!(encoder.stop_tokens().contains(EOT) && !encoder.stop_tokens().contains(BOS));
}

#[test]
fn prompt_and_target_together_are_the_answered_conversation() {
    let encoder = encoder(LLAMA3, Some("</s>"), serde_json::json!({})).unwrap();
    let talk = user("What?");
    let answered = encoder.template().render_answered(&talk, "That.").unwrap();
    let whole =
        [encoder.encode_prompt(&talk).unwrap().token_ids, encoder.encode_target(&talk, "That.").unwrap()];
    assert_eq!(whole.concat(), encoder.tokenizer().encode(&answered).unwrap());
}

#[test]
fn the_end_of_a_turn_is_what_follows_the_answer() {
    let head = "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}";
    for (answer, eos, want, source) in [
        // A space before the end token is part of the end.
        ("{{ m.content + ' </s>' }}", None, vec![3 + 32, EOS], EndOfTurnSource::Template),
        // The first special token ends the turn, though only another one is known as a stop.
        ("{{ m.content }}<|end|></s>", Some("</s>"), vec![263], EndOfTurnSource::Template),
        // A thinking block that generation has to write itself stands before the answer.
        ("<think></think>{{ m.content }}<|end|>", Some("</s>"), vec![263], EndOfTurnSource::Template),
        // Plain text after the answer: the template shows no end.
        ("{{ m.content }}\nUser:", Some("</s>"), vec![EOS], EndOfTurnSource::EosToken),
        ("{{ m.content }} bye </s>", Some("<|end|>"), vec![263], EndOfTurnSource::EosToken),
        // The answer does not come back as it was given.
        ("{{ m.content | upper }}</s>", Some("<|end|>"), vec![263], EndOfTurnSource::EosToken),
        ("{{ raise_exception('no assistant') }}", Some("</s>"), vec![EOS], EndOfTurnSource::EosToken),
    ] {
        let template = format!("{head}{answer}{{% endif %}}{{% endfor %}}");
        let encoder = encoder(&template, eos, serde_json::json!({})).unwrap();
        let end = encoder.end_of_turn();
        assert_eq!((&end.token_ids, end.source), (&want, source), "{answer}");
        assert!(encoder.stop_tokens().contains(*want.last().unwrap()), "{answer}");
    }
}

#[test]
fn an_answer_that_the_template_does_not_continue_the_prompt_with_is_refused() {
    let refused = |template: &str, answer: &str| {
        let encoder = encoder(template, Some("</s>"), serde_json::json!({})).unwrap();
        assert_eq!(encoder.end_of_turn().source, EndOfTurnSource::Template, "{template}");
        encoder.encode_target(&user("q"), answer).unwrap_err().to_string()
    };
    // The generation prompt opens a thought that the answered conversation leaves out.
    let opens = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}\
        {% if add_generation_prompt %}<think>{% endif %}";
    let error = refused(opens, "a");
    assert!(error.contains("writes \"<think>\" at the prompt's end"), "{error}");
    // The answered conversation has an empty thought that generation would have to write.
    let thinks = "{% for m in messages %}{% if m.role == 'assistant' and '<think>' not in m.content %}\
        <think></think>{% endif %}{{ m.content }}<|end|>{% endfor %}";
    let error = refused(thinks, "a");
    assert!(error.contains("writes \"<think></think>\" between") && error.contains("enable_thinking"));
    let encoder = encoder(thinks, Some("</s>"), serde_json::json!({})).unwrap();
    assert!(encoder.encode_target(&user("q"), "<think>hm</think>a").is_ok());
    let joined = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<|end|>{% endif %}\
        {% endfor %}";
    let error = refused(&joined.replace("{{ m.content }}", "{{ m.content | replace('e', 'o') }}"), "ee");
    assert!(error.contains("does not write the answer as it is given, but \"oo"), "{error}");
}

#[test]
fn a_token_that_spans_the_boundary_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    // `su` is a token: a prompt that ends in `s` and an answer that begins with `u` are not its parts.
    let tokenizer = byte_tokenizer::build(["su su su"].into_iter(), &[], 262).unwrap();
    byte_tokenizer::save_pretrained(&tokenizer, dir.path()).unwrap();
    let template = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<|im_end|>\
        {% endif %}{% endfor %}";
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let encoder = PromptEncoder::load(&EncoderFiles::of(dir.path())).unwrap();
    assert!(encoder.encode_target(&user("s"), "a").is_ok());
    let error = encoder.encode_target(&user("s"), "u").unwrap_err().to_string();
    assert!(error.contains("joins with the prompt's end"), "{error}");
}

#[test]
fn a_template_that_trims_answers_teaches_the_trimmed_answer() {
    let trims = LLAMA3;
    let encoder = encoder(trims, Some("</s>"), serde_json::json!({})).unwrap();
    let want: Vec<u32> = bytes("ok").chain([EOT]).collect();
    for answer in ["ok", " ok", "ok\n", "\n ok \n"] {
        assert_eq!(encoder.encode_target(&user("q"), answer).unwrap(), want, "{answer:?}");
    }
}

#[test]
fn without_an_end_in_the_template_the_eos_token_ends_an_answer() {
    // As Llama Guard's: the conversation is inside of a text, whoever spoke last.
    let guard = "Judge:{% for m in messages %}{{ m.content }}{% endfor %}. Safe?<|end|>";
    let with_eos = encoder(guard, Some("</s>"), serde_json::json!({"eos_token_id": 0})).unwrap();
    assert_eq!(with_eos.end_of_turn().source, EndOfTurnSource::EosToken);
    assert_eq!(with_eos.encode_target(&user("q"), "a").unwrap(), [100, EOS]);
    // Without eos_token, the first stop token of the model.
    let without = encoder(guard, None, serde_json::json!({"eos_token_id": [0, 1]})).unwrap();
    assert_eq!(without.encode_target(&user("q"), "a").unwrap(), [100, 0]);
    let error = encoder(guard, None, serde_json::json!({})).unwrap_err().to_string();
    assert!(error.contains("nothing says what ends an answer") && error.contains("eos_token_id"), "{error}");
}

#[test]
fn added_tokens_past_the_embedding_are_said_and_any_other_past_it_is_refused() {
    let dir =
        folder(serde_json::json!({"chat_template": LLAMA3, "eos_token": "</s>"}), serde_json::json!({}));
    let config = |rows: u32| {
        std::fs::write(dir.path().join("config.json"), format!("{{\"vocab_size\": {rows}}}")).unwrap();
        PromptEncoder::load(&EncoderFiles::of(dir.path()))
    };
    assert_eq!(config(264).unwrap().note(), None);
    let note = config(263).unwrap().note().unwrap();
    assert!(note.contains("has no row for <|end|>; a text that holds it is refused"), "{note}");
    let error = config(261).unwrap_err().to_string();
    assert!(error.contains("holds `<|eot_id|>`, id 261, but the model's embedding has 261 rows"), "{error}");
    let error = config(258).unwrap_err().to_string();
    assert!(error.contains("has ids up to 258, but") && error.contains("258 rows"), "{error}");
}

#[test]
fn template_arguments_reach_the_template_and_wrong_ones_are_refused() {
    let qwen = "{{ messages[0].content }}{% if enable_thinking is defined and enable_thinking is false %}\
        <think></think>{% endif %}{{ messages_to_skip }}";
    let dir = folder(serde_json::json!({"chat_template": qwen, "eos_token": "</s>"}), serde_json::json!({}));
    let load = |text: &str| {
        let arguments: toml::Table = text.parse().unwrap();
        let files = EncoderFiles { template_args: Some(&arguments), ..EncoderFiles::of(dir.path()) };
        PromptEncoder::load(&files).and_then(|e| e.encode_prompt(&user("a")))
    };
    assert_eq!(load("").unwrap().token_ids, [100]);
    assert_eq!(load("enable_thinking = true").unwrap().token_ids, [100]);
    assert_eq!(load("enable_thinking = false").unwrap().token_ids.len(), 1 + "<think></think>".len());
    for (text, want) in [
        ("enable_thinking = 'false'", "model.template_args.enable_thinking = \"false\": must be a boolean"),
        ("enable_thinking = 0", "must be a boolean"),
        ("enable_thinkin = false", "chat_template does not ask for it"),
        ("messages = []", "every rendering sets it"),
        ("bos_token = 'a'", "every rendering sets it"),
        ("messages_to_skip = 1979-05-27", "a text in quotes"),
    ] {
        let error = load(text).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn a_completion_is_read_without_its_end() {
    let encoder = encoder(LLAMA3, Some("</s>"), serde_json::json!({})).unwrap();
    assert_eq!(encoder.decode_completion(&[100, 101, EOT]).unwrap(), "ab");
    assert_eq!(encoder.decode_completion(&[100, 101]).unwrap(), "ab");
    assert_eq!(encoder.decode_completion(&[]).unwrap(), "");
    // A stop token that is an ordinary word is left out too.
    let plain = self::encoder(LLAMA3, None, serde_json::json!({"eos_token_id": 101})).unwrap();
    assert_eq!(plain.decode_completion(&[100, 101]).unwrap(), "a");
}

#[test]
fn answers_that_hold_control_tokens_or_nothing_are_refused() {
    let encoder = encoder(LLAMA3, Some("</s>"), serde_json::json!({})).unwrap();
    let error = |answer: &str| encoder.encode_target(&user("a"), answer).unwrap_err().to_string();
    assert!(error("a</s>").contains("holds the special token `</s>`"));
    assert!(error("").contains("has no tokens"));
}

#[test]
fn templates_that_break_every_prompt_are_refused_at_load() {
    let error =
        |template: &str| encoder(template, Some("</s>"), serde_json::json!({})).unwrap_err().to_string();
    assert!(error("<s>{{ bos_token }}{{ messages[0].content }}").contains("BOS twice"));
    assert!(error("{% if false %}x{% endif %}").contains("writes nothing"));
    assert!(error("{{ raise_exception('never') }}").contains("refuses the conversation: never"));
    let foreign = encoder(LLAMA3, Some("<eos>"), serde_json::json!({})).unwrap_err().to_string();
    assert!(foreign.contains("eos_token is `<eos>`, which is no token"), "{foreign}");
}

#[test]
fn a_guard_takes_another_models_tokenizer_and_template() {
    let config = serde_json::json!({"chat_template": LLAMA3, "bos_token": "<s>"});
    let tokenizer = folder(config, serde_json::json!({"eos_token_id": 0}));
    let model = tempfile::tempdir().unwrap();
    std::fs::write(model.path().join("generation_config.json"), r#"{"eos_token_id": 1}"#).unwrap();
    let template = model.path().join("guard.jinja");
    std::fs::write(&template, "{{ messages[0].content }}<|end|>").unwrap();
    let files = EncoderFiles {
        tokenizer_dir: Some(tokenizer.path()),
        chat_template: Some(&template),
        ..EncoderFiles::of(model.path())
    };
    let encoder = PromptEncoder::load(&files).unwrap();
    assert_eq!(encoder.encode_prompt(&user("a")).unwrap().token_ids, [100, 263]);
    assert_eq!(encoder.stop_tokens().ids(), [1]);
    let error = PromptEncoder::load(&EncoderFiles::of(model.path())).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json: is missing"), "{error}");
}

#[test]
fn what_a_template_leaves_out_is_refused_with_its_place_and_role() {
    let call = serde_json::json!([{"id": "c", "type": "function", "function": {"name": "search", "arguments": {"q": "rm"}}}]);
    let mut calling = Message::new("assistant", "");
    calling.more.insert("tool_calls".into(), call);
    let tool = Message::new("tool", "one book");
    let refused = |template: &str, talk: Vec<Message>| {
        let encoder = encoder(template, Some("</s>"), serde_json::json!({})).unwrap();
        encoder.encode_prompt(&talk.into()).map(|_| ()).map_err(|error| error.to_string())
    };
    let user_only =
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<|end|>{% endif %}{% endfor %}";
    let talk = vec![Message::new("user", "a"), tool.clone()];
    let error = refused(user_only, talk.clone()).unwrap_err();
    assert!(error.contains("writes nothing of message 2 (role tool). Take a chat template"), "{error}");
    assert_eq!(refused(LLAMA3, talk), Ok(()));
    let error = refused(LLAMA3, vec![Message::new("user", "a"), calling.clone(), tool.clone()]).unwrap_err();
    let want = "tool_calls[0].function.name of message 2 (role assistant), tool_calls[0].function.arguments of message 2";
    assert!(error.contains(want), "{error}");
    // The second of two calls, and what is said beside a call.
    let first = LLAMA3.replace(
        "{{ m.content | trim }}",
        "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}\
        {% else %}{{ m.content }}{% endif %}",
    );
    assert_eq!(refused(&first, vec![Message::new("user", "a"), calling.clone(), tool.clone()]), Ok(()));
    let mut two = calling.clone();
    let mut calls = two.more["tool_calls"].as_array().unwrap().clone();
    calls.push(serde_json::json!({"function": {"name": "search", "arguments": {"q": "rm"}}}));
    two.more.insert("tool_calls".into(), calls.into());
    let error = refused(&first, vec![Message::new("user", "a"), two, tool.clone()]).unwrap_err();
    assert!(error.contains("tool_calls[1].function.name of message 2"), "{error}");
    let said = Message { content: crate::types::Content::Text("I search".into()), ..calling };
    let error = refused(&first, vec![Message::new("user", "a"), said, tool]).unwrap_err();
    assert!(error.contains("writes nothing of message 2 (role assistant)"), "{error}");
    // Words of the row's own that a template cuts.
    let cut = LLAMA3.replace("m.content | trim", "m.content.split('---')[0]");
    assert_eq!(refused(&cut, user("a").messages), Ok(()));
    let error = refused(&cut, user("a --- the rest").messages).unwrap_err();
    assert!(error.contains("does not write all of message 1 (role user)"), "{error}");
}

#[test]
fn tools_reach_the_template_and_one_without_them_is_refused() {
    let tools = serde_json::json!([{"type": "function", "function": {"name": "search", "parameters": {}}}]);
    let talk = Conversation { tools: Some(tools), ..user("a") };
    let without = encoder(LLAMA3, Some("</s>"), serde_json::json!({})).unwrap();
    let error = without.encode_prompt(&talk).unwrap_err().to_string();
    assert!(
        error.contains("writes nothing of the row's tools[0]. Take a chat template that writes tools"),
        "{error}"
    );
    let with =
        encoder(&format!("{{{{ tools | tojson }}}}{LLAMA3}"), Some("</s>"), serde_json::json!({})).unwrap();
    assert_eq!(with.template().render_prompt(&talk).unwrap().matches("search").count(), 1);
    assert!(with.encode_prompt(&talk).is_ok());
}

#[test]
fn a_templates_line_ends_are_line_feeds_and_a_rows_stay() {
    let template = "{% for m in messages %}\n{{ m.content }}\n<|end|>{% endfor %}\n";
    let text = |template: &str| {
        let encoder = encoder(template, Some("</s>"), serde_json::json!({})).unwrap();
        encoder.template().render_prompt(&user("a\r\nb")).unwrap()
    };
    assert_eq!(text(template), "a\r\nb\n<|end|>");
    assert_eq!(text(&template.replace('\n', "\r\n")), text(template));
    assert_eq!(text(&template.replace('\n', "\r")), text(template));
}
