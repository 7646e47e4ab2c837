//! The server as an operator and an application engineer meet it: the real binary, over loopback.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use strata_data::Tokenizer;
use strata_data::world::{Part, World};
use strata_model::{Config, Decoder, folder, weights, write_weights};

const STRATA: &str = env!("CARGO_BIN_EXE_strata");

/// A home with an untrained model called `tiny`: what it says is arbitrary and always the same.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let text: Vec<String> = World::new(1).base_text(Part::Training, 50_000).collect();
    let tokenizer = Tokenizer::train(text.iter().map(Ok), 600).unwrap();
    let config = Config {
        vocab_size: tokenizer.vocab_size(),
        width: 32,
        layers: 2,
        heads: 2,
        kv_heads: 2,
        head_dim: 16,
        ffn: 64,
        max_positions: 256,
        norm_epsilon: 1e-5,
        rope_theta: 10000.0,
        rope_scaling: None,
        tied: true,
        bos: tokenizer.bos_id(),
        eos: tokenizer.eos_ids().to_vec(),
        mixing: strata_model::Mixing::default(),
    };
    let path = home.path().join("models").join("tiny");
    fs::create_dir_all(&path).unwrap();
    config.save(&path).unwrap();
    write_weights(&path.join(weights::SINGLE_FILE), &Decoder::new(&config, 1).unwrap().tensors()).unwrap();
    folder::write_generation_config(&path, &config).unwrap();
    tokenizer.save(&path).unwrap();
    home
}

fn strata(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(STRATA);
    command.args(arguments).env("STRATA_HOME", home).env_remove("STRATA_ISA").stdin(Stdio::null());
    command
}

fn key(home: &Path, arguments: &[&str]) -> String {
    let output = strata(home, &[&["keys", "create", "--json"], arguments].concat()).output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    answer["key"].as_str().unwrap().to_string()
}

/// A server that ends with the test.
struct Server {
    process: Child,
    address: String,
    /// Gives the log when the server has ended.
    log: Option<JoinHandle<String>>,
}

impl Server {
    fn start(home: &Path, arguments: &[&str]) -> Server {
        Server::spawn(strata(home, &[&["serve", "--port", "0"], arguments].concat()))
    }

    fn spawn(mut command: Command) -> Server {
        let mut process = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let first = lines.find(|line| line.contains("serves at http://")).expect("it says where it serves");
        let address = first.split("http://").nth(1).unwrap().split(' ').next().unwrap().to_string();
        let log = Some(std::thread::spawn(move || lines.collect::<Vec<_>>().join("\n")));
        let server = Server { process, address, log };
        let deadline = Instant::now() + Duration::from_secs(30);
        while server.get("/ready").0 != 200 {
            assert!(Instant::now() < deadline, "the server is not ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    fn send(&self, method: &str, path: &str, key: &str, body: &str) -> TcpStream {
        let mut stream = self.connect();
        let (host, length) = (&self.address, body.len());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    fn get(&self, path: &str) -> (u16, String) {
        read(self.send("GET", path, "any", ""))
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.post_with("any", path, body)
    }

    fn post_with(&self, key: &str, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = read(self.send("POST", path, key, &body.to_string()));
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    fn terminate(&self) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    }

    /// Ends it and gives all it wrote to its log.
    fn log(mut self) -> String {
        self.terminate();
        self.process.wait().unwrap();
        self.log.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Status and body of an answer; the pieces of a stream are put together, their lengths left in.
fn read(mut stream: TcpStream) -> (u16, String) {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_string())
}

fn chat(text: &str) -> Value {
    json!({"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 20})
}

fn answer(body: &Value) -> &str {
    body["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{body}"))
}

#[test]
fn both_apis_give_the_same_answer_alone_and_in_a_crowd() {
    let home = home();
    let server = Server::start(home.path(), &[]);
    let texts: Vec<String> = (0..24).map(|i| format!("Tell me of {i} and {}.", i * i)).collect();
    let alone: Vec<String> =
        texts.iter().map(|text| answer(&server.post("/v1/chat/completions", &chat(text)).1).into()).collect();
    let crowd: Vec<String> = std::thread::scope(|scope| {
        let ask = |text: &String| answer(&server.post("/v1/chat/completions", &chat(text)).1).to_string();
        let asking: Vec<_> = texts.iter().map(|text| scope.spawn(move || ask(text))).collect();
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert_eq!(crowd, alone);
    let (status, body) = server.post("/v2/chat", &chat(&texts[3]));
    assert_eq!((status, body["message"]["content"][0]["text"].as_str()), (200, Some(alone[3].as_str())));
}

#[test]
fn without_keys_only_this_machine_is_served() {
    let home = home();
    let output = strata(home.path(), &["serve", "--port", "0", "--host", "0.0.0.0"]).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("strata keys create"), "{errors}");
    let server = Server::start(home.path(), &[]);
    let mut stream = server.connect();
    stream.write_all(b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(read(stream).0, 403, "a name that others resolve to this machine is not answered");
}

#[test]
fn keys_are_needed_once_there_are_some_and_worthless_once_revoked() {
    let home = home();
    let server = Server::start(home.path(), &[]);
    assert_eq!(server.post("/v1/chat/completions", &chat("a")).0, 200);
    let lab = key(home.path(), &["lab"]);
    let (status, body) = server.post("/v1/chat/completions", &chat("a"));
    assert_eq!((status, body["message"].as_str()), (401, Some("invalid api token")));
    assert_eq!(server.post_with(&lab, "/v1/chat/completions", &chat("a")).0, 200);
    assert_eq!(server.get("/health").0, 200, "probes need no key");
    let output: Output = strata(home.path(), &["keys", "revoke", "lab"]).output().unwrap();
    assert!(output.status.success());
    key(home.path(), &["other"]);
    assert_eq!(server.post_with(&lab, "/v1/chat/completions", &chat("a")).0, 401);
    let log = server.log();
    assert!(!log.contains(&lab) && log.contains("lab"), "the log names keys and does not tell them:\n{log}");
}

#[test]
fn a_key_that_asks_too_often_is_told_when_to_come_back() {
    let home = home();
    let slow = key(home.path(), &["slow", "--requests-per-minute", "2"]);
    let fast = key(home.path(), &["fast"]);
    let server = Server::start(home.path(), &[]);
    let statuses: Vec<u16> =
        (0..3).map(|_| server.post_with(&slow, "/v1/chat/completions", &chat("a")).0).collect();
    assert_eq!(statuses, [200, 200, 429]);
    let mut stream = server.send("POST", "/v1/chat/completions", &slow, &chat("a").to_string());
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let wait = text.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap();
    assert!((1..=30).contains(&wait.parse::<u32>().unwrap()), "{text}");
    assert_eq!(
        server.post_with(&fast, "/v1/chat/completions", &chat("a")).0,
        200,
        "others are not held back"
    );
}

#[test]
fn a_server_that_is_stopped_finishes_what_it_is_writing() {
    let home = home();
    let mut server = Server::start(home.path(), &[]);
    let long =
        json!({"model": "tiny", "prompt": "a", "max_tokens": 230, "stream": true, "logit_bias": {"0": -100}});
    let mut stream = server.send("POST", "/v1/completions", "any", &long.to_string());
    let mut first = [0; 1];
    stream.read_exact(&mut first).unwrap();
    server.terminate();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
    assert!(server.process.wait().unwrap().success());
    assert!(TcpStream::connect(&server.address).is_err(), "it takes no new connections");
}

#[test]
fn another_server_underneath_is_served_under_the_same_apis() {
    let (home, empty) = (home(), tempfile::tempdir().unwrap());
    let below = Server::start(home.path(), &[]);
    let url = format!("http://{}/v1", below.address);
    let above = Server::start(empty.path(), &["--upstream", &url]);
    let (status, list) = above.get("/v1/models");
    assert!(status == 200 && list.contains("tiny"), "{list}");
    // An untrained model may write nothing but special tokens; some question makes it write text.
    let mut asked = (0..50).map(|i| {
        let mut question = chat(&format!("Tell me of {i}."));
        // Each API has its own default where the model's is not known.
        question["temperature"] = json!(0);
        let direct = below.post("/v1/chat/completions", &question).1;
        (question, direct)
    });
    let (question, direct) = asked.find(|(_, direct)| !answer(direct).is_empty()).unwrap();
    let relayed = above.post("/v1/chat/completions", &question).1;
    assert_eq!(answer(&relayed), answer(&direct));
    assert_eq!(relayed["usage"]["completion_tokens"], direct["usage"]["completion_tokens"]);
    let cohere = above.post("/v2/chat", &question).1;
    assert_eq!(cohere["message"]["content"][0]["text"].as_str(), Some(answer(&direct)));
    let (prompt, n) = (json!(["a", "b"]), 2);
    let several = json!({"model": "tiny", "prompt": prompt, "n": n, "max_tokens": 3, "temperature": 0});
    let relayed = above.post("/v1/completions", &several).1;
    assert_eq!(relayed["choices"].as_array().unwrap().len(), 4, "{relayed}");
    let (status, body) = above.post("/v1/chat/completions", &json!({"model": "none", "messages": []}));
    assert_eq!((status, body["error"]["param"].as_str()), (400, Some("messages")), "{body}");
    let unknown = json!({"model": "none", "messages": [{"role": "user", "content": "a"}]});
    assert_eq!(above.post("/v1/chat/completions", &unknown).0, 404);
    let hot = json!({"model": "tiny", "messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}});
    assert_eq!(above.post("/v1/chat/completions", &hot).0, 400, "what it refuses is refused here");
    let mut negative = question.clone();
    negative["seed"] = json!(-1);
    assert_eq!(above.post("/v1/chat/completions", &negative).0, 200);
    let long = chat(&"a ".repeat(500));
    let (status, body) = above.post("/v1/chat/completions", &long);
    assert_eq!((status, body["error"]["code"].as_str()), (400, Some("context_length_exceeded")), "{body}");
    assert_eq!(body["message"].as_str().unwrap().matches("messages:").count(), 1, "{body}");
    let measured = json!({"model": "tiny", "prompt": "a", "echo": true, "logprobs": 1});
    assert_eq!(below.post("/v1/completions", &measured).0, 200);
    let (status, body) = above.post("/v1/completions", &measured);
    assert_eq!((status, body["error"]["param"].as_str()), (400, Some("echo")), "{body}");
    drop(below);
    let (status, body) = above.post("/v1/chat/completions", &question);
    assert_eq!(status, 503, "{body}");
}

/// A server with a model that calls a tool, in the way of servers that end a call as they end a text; and what it is asked.
fn calling() -> (String, mpsc::Receiver<Value>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, questions) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let body = loop {
                let mut bytes = [0; 4096];
                let count = stream.read(&mut bytes).unwrap();
                request.extend_from_slice(&bytes[..count]);
                let text = String::from_utf8_lossy(&request).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head.lines().find_map(|line| {
                    line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok()
                });
                if body.len() >= length.unwrap_or(0) {
                    break body.to_string();
                }
            };
            let answer = match serde_json::from_str(&body) {
                Ok(question) => {
                    asked.send(question).unwrap();
                    let call = json!({"index": 0, "id": "x", "function": {"name": "find", "arguments": "{\"n\": 1}"}});
                    let delta = json!({"content": "I look.", "tool_calls": [call]});
                    let called = json!({"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]});
                    format!("data: {called}\n\ndata: [DONE]\n\n")
                }
                Err(_) => json!({"data": [{"id": "calling"}]}).to_string(),
            };
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/plain";
            stream
                .write_all(format!("{head}\r\nContent-Length: {}\r\n\r\n{answer}", answer.len()).as_bytes())
                .unwrap();
        }
    });
    (format!("http://{address}/v1"), questions)
}

#[test]
fn a_limit_of_the_server_behind_is_told_as_a_limit() {
    let (home, empty) = (home(), tempfile::tempdir().unwrap());
    let secret = key(home.path(), &["lab", "--requests-per-minute", "1"]);
    let below = Server::start(home.path(), &[]);
    let mut command =
        strata(empty.path(), &["serve", "--port", "0", "--upstream", &format!("http://{}", below.address)]);
    command.env("STRATA_UPSTREAM_KEY", secret);
    let above = Server::spawn(command);
    let answers = [0; 3].map(|_| above.post("/v1/chat/completions", &chat("a")));
    let (status, body) = &answers[2];
    assert_eq!((*status, body["error"]["code"].as_str()), (429, Some("rate_limit_exceeded")), "{body}");
}

#[test]
fn tools_of_another_server_are_called_and_get_their_results_back() {
    let home = tempfile::tempdir().unwrap();
    let (url, questions) = calling();
    let above = Server::start(home.path(), &["--upstream", &url]);
    let function = json!({"name": "find", "description": "Finds", "parameters": {"type": "object"}});
    let tools = json!([{"type": "function", "function": function}]);
    let user = json!({"role": "user", "content": "How many?"});
    let ask = json!({"model": "calling", "messages": [user], "tools": tools});

    let (status, first) = above.post("/v2/chat", &ask);
    assert_eq!((status, first["finish_reason"].as_str()), (200, Some("TOOL_CALL")), "{first}");
    assert_eq!(first["message"]["tool_plan"], "I look.");
    let calls = &first["message"]["tool_calls"];
    assert_eq!(questions.recv().unwrap()["tools"], tools);

    let assistant = json!({"role": "assistant", "tool_plan": "I look.", "tool_calls": calls});
    let result = json!({"role": "tool", "tool_call_id": calls[0]["id"], "content": "three"});
    let again = json!({"model": "calling", "messages": [user, assistant, result], "tools": tools});
    assert_eq!(above.post("/v2/chat", &again).0, 200);
    let told = &questions.recv().unwrap()["messages"];
    assert_eq!(told[1]["content"], "I look.");
    assert_eq!(told[1]["tool_calls"][0]["function"], json!({"name": "find", "arguments": "{\"n\": 1}"}));
    assert_eq!(told[1]["tool_calls"][0]["id"], told[2]["tool_call_id"]);
    assert_eq!(told[2], json!({"role": "tool", "content": "three", "tool_call_id": calls[0]["id"]}));

    let (_, chat) = above.post("/v1/chat/completions", &ask);
    assert_eq!(chat["choices"][0]["finish_reason"], "tool_calls", "{chat}");
    questions.recv().unwrap();

    // Version 1 of Cohere's API has no ids.
    let call = json!({"name": "find", "parameters": {"n": 1}});
    let history = json!([
        {"role": "USER", "message": "How many?"},
        {"role": "CHATBOT", "message": "I look.", "tool_calls": [call]},
    ]);
    let results = json!([{"call": call, "outputs": [{"found": 3}]}]);
    let body = json!({"model": "calling", "message": "", "chat_history": history, "tool_results": results});
    let (status, answer) = above.post("/v1/chat", &body);
    assert_eq!(status, 200, "{answer}");
    let told = &questions.recv().unwrap()["messages"];
    assert_eq!(told[1]["tool_calls"][0]["id"], told[2]["tool_call_id"]);
    assert!(told[2]["tool_call_id"].is_string(), "{told}");
}

/// A server that lists a model, begins every answer and ends none.
fn endless() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap();
            let list = r#"{"data": [{"id": "endless"}]}"#;
            let begun = r#"data: {"choices": [{"index": 0, "delta": {"content": "Once"}}]}"#;
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type:";
            let text = match request[..count].starts_with(b"GET") {
                true => format!("{head} application/json\r\nContent-Length: {}\r\n\r\n{list}", list.len()),
                false => format!("{head} text/event-stream\r\n\r\n{begun}\n\n"),
            };
            stream.write_all(text.as_bytes()).unwrap();
            held.push(stream);
        }
    });
    format!("http://{address}/v1")
}

#[test]
fn what_another_server_does_not_end_in_time_is_cut_and_what_came_is_kept() {
    let home = tempfile::tempdir().unwrap();
    let above = Server::start(home.path(), &["--upstream", &endless(), "--timeout", "1"]);
    let asked = json!({"model": "endless", "messages": [{"role": "user", "content": "a"}]});
    let (status, body) = above.post("/v1/chat/completions", &asked);
    assert_eq!((status, answer(&body)), (200, "Once"), "{body}");
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    let (status, body) = above.post("/v2/chat", &asked);
    assert_eq!((status, body["finish_reason"].as_str()), (200, Some("TIMEOUT")), "{body}");
    assert!(above.log().contains("outcome=\"timeout\""));
}

#[test]
fn prompts_and_answers_stay_out_of_the_log_unless_they_are_asked_for() {
    let home = home();
    for (flags, told) in [(&["--log", "json"][..], false), (&["--log", "json", "--log-content"], true)] {
        let server = Server::start(home.path(), flags);
        let (_, body) = server.post("/v1/chat/completions", &chat("The secret word is xylophone."));
        let written = answer(&body).to_string();
        let log = server.log();
        assert_eq!(log.contains("xylophone"), told, "{log}");
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("a log of JSON"));
        let answers: Vec<Value> = lines.filter(|line| line["fields"]["message"] == "answer").collect();
        assert_eq!(answers.len(), 1, "{log}");
        assert_eq!(answers[0]["fields"]["completion_tokens"], 20);
        assert_eq!(answers[0]["fields"]["answer"].as_str() == Some(&written), told);
    }
}

#[test]
fn settings_come_from_a_file_where_flags_say_nothing() {
    let home = home();
    let file = home.path().join("serve.toml");
    fs::write(&file, "host = \"localhost\"\nmax-tokens = 5\nlog = \"json\"\nmodel = [\"tiny\"]\n").unwrap();
    let path = file.to_str().unwrap();
    let server = Server::start(home.path(), &["--config", path]);
    assert_eq!(server.post("/v1/chat/completions", &chat("a")).1["usage"]["completion_tokens"], 5);
    let server = Server::start(home.path(), &["--config", path, "--max-tokens", "6"]);
    assert_eq!(server.post("/v1/chat/completions", &chat("a")).1["usage"]["completion_tokens"], 6);
    fs::write(&file, "prot = 8081\n").unwrap();
    let output = strata(home.path(), &["serve", "--config", path]).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(errors.contains("prot") && errors.contains("serve.toml"), "{errors}");
}

#[test]
fn a_model_that_is_made_while_the_server_runs_is_served() {
    let home = home();
    let server = Server::start(home.path(), &[]);
    let question = json!({"model": "new", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3});
    assert_eq!(server.post("/v1/chat/completions", &question).0, 404);
    let models = home.path().join("models");
    let copy = models.join("new");
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(models.join("tiny")).unwrap() {
        let file: PathBuf = file.unwrap().path();
        fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
    }
    assert_eq!(server.post("/v1/chat/completions", &question).0, 200);
}

#[test]
fn the_server_connects_to_nobody() {
    let traced = Command::new("strace").args(["-f", "-e", "trace=connect", "true"]).output();
    if !traced.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: strace is not there or not allowed, so outgoing connections cannot be watched");
        return;
    }
    let home = home();
    let trace = home.path().join("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o"]).arg(&trace).arg(STRATA);
    command.args(["serve", "--port", "0"]).env("STRATA_HOME", home.path()).stdin(Stdio::null());
    let mut server = Server::spawn(command);
    for path in ["/", "/docs/", "/openapi.json", "/metrics", "/v1/models"] {
        assert_eq!(server.get(path).0, 200, "{path}");
    }
    for path in ["/v1/chat/completions", "/v2/chat"] {
        assert_eq!(server.post(path, &chat("a")).0, 200);
    }
    assert_eq!(server.post("/v1/tokenize", &json!({"model": "tiny", "text": "a"})).0, 200);
    // The signal must reach the server, which is the child of strace.
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", server.process.id())).unwrap();
    let child = children.split_whitespace().next().unwrap();
    assert!(Command::new("kill").args(["-TERM", child]).status().unwrap().success());
    server.process.wait().unwrap();
    let trace = fs::read_to_string(trace).unwrap();
    assert!(trace.contains("sendto") || trace.contains("exited"), "something was traced: {trace}");
    let outgoing: Vec<&str> =
        trace.lines().filter(|line| line.contains("connect(") || line.contains("AF_INET")).collect();
    assert!(outgoing.is_empty(), "{outgoing:#?}");
}
