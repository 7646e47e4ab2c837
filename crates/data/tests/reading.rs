//! Corpora, pairs, dialogues and tasks as files on disk, good and bad.

use std::io::Write;
use std::path::{Path, PathBuf};

use strata_data::records::{dialogues, pairs, tasks};
use strata_data::{Corpus, DataError, Example, Role};

fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    path
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn parquet(path: &Path, column: &str, texts: &[Option<&str>]) {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
    let schema = format!("message m {{ required int32 n; optional binary {column} (UTF8); }}");
    let schema = parquet::schema::parser::parse_message_type(&schema).unwrap();
    let file = std::fs::File::create(path).unwrap();
    let properties = WriterProperties::builder()
        .set_compression(parquet::basic::Compression::ZSTD(Default::default()))
        .build();
    let mut writer = SerializedFileWriter::new(file, schema.into(), properties.into()).unwrap();
    for part in texts.chunks(300) {
        let mut group = writer.next_row_group().unwrap();
        let mut numbers = group.next_column().unwrap().unwrap();
        let count: Vec<i32> = (0..part.len() as i32).collect();
        numbers.typed::<parquet::data_type::Int32Type>().write_batch(&count, None, None).unwrap();
        numbers.close().unwrap();
        let mut strings = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = part.iter().flatten().map(|text| ByteArray::from(*text)).collect();
        let levels: Vec<i16> = part.iter().map(|text| i16::from(text.is_some())).collect();
        strings.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        strings.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn texts(paths: &[PathBuf]) -> Result<Vec<String>, DataError> {
    Corpus::open(paths)?.documents().map(|document| Ok(document?.text)).collect()
}

fn failure<T>(result: Result<T, DataError>, parts: &[&str]) -> String {
    let Err(error) = result else { panic!("expected an error naming {parts:?}") };
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "expected {part:?} in: {text}");
    }
    text
}

#[test]
fn a_folder_is_read_in_sorted_order_whatever_the_format() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    write(root, "b/2.jsonl", "{\"text\": \"json one\"}\n\n{\"text\": \"json two\", \"other\": 1}\n");
    write(root, "a.txt", "\n\nfirst line\n\nsame document\n\n\nsecond\r\n\r\n\r\n\r\nthird");
    write(root, "b/1.md", "# Title\n\n\n\nwhole file\n");
    write(root, "c.txt.gz", gzip("zipped"));
    write(root, "d.txt.zst", zstd::encode_all("standard".as_bytes(), 3).unwrap());
    write(root, "notes.pdf", "not read");
    parquet(&root.join("e.parquet"), "text", &[Some("row one"), Some("row two")]);
    let corpus = Corpus::open(&[root.to_path_buf()]).unwrap();
    assert_eq!((corpus.files().len(), corpus.ignored_files()), (6, 1));
    let documents: Vec<_> = corpus.documents().map(Result::unwrap).collect();
    let found: Vec<&str> = documents.iter().map(|document| document.text.as_str()).collect();
    let wanted = [
        "first line\n\nsame document\n",
        "second\r\n",
        "third",
        "# Title\n\n\n\nwhole file\n",
        "json one",
        "json two",
        "zipped",
        "standard",
        "row one",
        "row two",
    ];
    assert_eq!(found, wanted);
    let lines: Vec<u64> = documents.iter().map(|document| document.origin.line).collect();
    assert_eq!(lines, [3, 8, 12, 1, 1, 3, 1, 1, 1, 2]);
    assert_eq!(corpus.digests().unwrap().len(), 6);
    assert!(corpus.bytes_on_disk().unwrap() > 100);
}

#[test]
fn a_file_given_twice_is_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "a.txt", "text");
    assert_eq!(texts(&[file.clone(), folder.path().to_path_buf(), file]).unwrap(), ["text"]);
}

#[test]
fn corpus_paths_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    failure(texts(&[root.join("gone.txt")]), &["gone.txt", "no such file"]);
    let pdf = write(root, "a.pdf", "x");
    failure(texts(&[pdf]), &["a.pdf", ".txt", ".parquet", ".zst"]);
    failure(texts(&[root.to_path_buf()]), &["no corpus text", "1 other"]);
    let empty = write(root, "b.txt", "\n \n\n");
    failure(texts(&[empty]), &["b.txt", "no documents"]);
    failure(texts(&[]), &["no corpus text"]);
}

#[test]
fn bytes_that_are_not_utf8_are_found_by_line_and_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "latin1.txt", b"one\ntwo\ncaf\xe9\n");
    failure(texts(&[path]), &["latin1.txt:3", "byte 11", "UTF-8"]);
    let path = write(folder.path(), "wide.txt", b"\xff\xfea\0b\0");
    failure(texts(&[path]), &["wide.txt:1", "byte 0", "UTF-16"]);
    let path = write(folder.path(), "mark.txt", "\u{feff}text");
    assert_eq!(texts(&[path]).unwrap(), ["text"]);
}

#[test]
fn bad_corpus_lines_name_file_line_and_field() {
    let folder = tempfile::tempdir().unwrap();
    for (line, parts) in [
        ("{\"content\": \"x\"}", &["a.jsonl:2", "\"text\"", "missing", "content"][..]),
        ("{\"text\": 7}", &["a.jsonl:2", "\"text\"", "a number", "a string"]),
        ("[1]", &["a.jsonl:2", "a list", "object"]),
        ("{\"text\": ", &["a.jsonl:2", "not JSON", "column 8"]),
        (&"[".repeat(100_000), &["a.jsonl:2", "not JSON"]),
    ] {
        let path = write(folder.path(), "a.jsonl", format!("{{\"text\": \"good\"}}\n{line}\n"));
        let mut documents = Corpus::open(&[path]).unwrap().documents();
        assert_eq!(documents.next().unwrap().unwrap().text, "good");
        failure(documents.next().unwrap(), parts);
        assert!(documents.next().is_none(), "the stream ends after an error");
    }
}

#[test]
fn empty_documents_are_passed_over_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "a.jsonl", "{\"text\": \"\"}\n{\"text\": \"x\"}\n{\"text\": \" \\n\"}\n");
    let mut documents = Corpus::open(&[path]).unwrap().documents();
    assert_eq!(documents.by_ref().filter_map(Result::ok).count(), 1);
    assert_eq!(documents.empty_documents(), 2);
}

#[test]
fn compressed_files_that_end_early_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let text: String = (0..2000).map(|i| format!("line {}\n", i * i)).collect();
    for (name, bytes) in
        [("a.txt.gz", gzip(&text)), ("a.txt.zst", zstd::encode_all(text.as_bytes(), 3).unwrap())]
    {
        for length in [1, 7, bytes.len() / 2, bytes.len() - 1] {
            let path = write(folder.path(), name, &bytes[..length]);
            failure(texts(&[path]), &[name]);
        }
    }
}

#[test]
fn parquet_files_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let many: Vec<String> = (0..1000).map(|i| format!("row {i}")).collect();
    let mut rows: Vec<Option<&str>> = many.iter().map(|text| Some(text.as_str())).collect();
    parquet(&path, "text", &rows);
    assert_eq!(texts(std::slice::from_ref(&path)).unwrap(), many);
    rows[700] = None;
    parquet(&path, "text", &rows);
    failure(texts(std::slice::from_ref(&path)), &["a.parquet:701", "\"text\"", "null"]);
    parquet(&path, "body", &rows);
    failure(texts(std::slice::from_ref(&path)), &["a.parquet", "no column \"text\"", "n, body"]);
    parquet(&path, "text", &rows[..5]);
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        failure(texts(std::slice::from_ref(&path)), &["a.parquet"]);
    }
}

#[test]
fn pairs_become_examples() {
    let folder = tempfile::tempdir().unwrap();
    let line = "{\"prompt\": \"p\", \"response\": \" r\", \"system\": \"s\", \"source\": \"x\", \"weight\": 0.5, \"id\": 3}";
    write(folder.path(), "a.jsonl", format!("{line}\n{{\"prompt\": \"q\", \"response\": \"r\"}}\n"));
    write(folder.path(), "b.jsonl.gz", gzip("{\"prompt\": \"z\", \"response\": \"r\"}"));
    let all: Vec<_> = pairs(&[folder.path().into()]).unwrap().map(Result::unwrap).collect();
    assert_eq!(all.len(), 3);
    assert_eq!((all[0].source.as_deref(), all[1].weight), (Some("x"), 1.0));
    let example = Example::from(all[0].clone());
    let roles: Vec<Role> = example.messages.iter().map(|message| message.role).collect();
    assert_eq!(roles, [Role::System, Role::User, Role::Assistant]);
    assert_eq!(example.messages[2].content, " r", "content is not trimmed");
    assert_eq!(example.weight, 0.5);
    assert_eq!((example.origin.line, Example::from(all[1].clone()).messages.len()), (1, 2));
}

#[test]
fn bad_pairs_name_file_line_and_field() {
    let folder = tempfile::tempdir().unwrap();
    for (line, parts) in [
        ("{\"prompt\": \"p\"}", &["p.jsonl:2", "\"response\"", "missing"][..]),
        ("{\"response\": \"r\"}", &["p.jsonl:2", "\"prompt\"", "missing"]),
        ("{\"prompt\": \" \", \"response\": \"r\"}", &["p.jsonl:2", "\"prompt\"", "empty"]),
        ("{\"prompt\": \"p\", \"response\": null}", &["p.jsonl:2", "\"response\"", "null"]),
        ("{\"prompt\": \"p\", \"response\": \"r\", \"weight\": -1}", &["p.jsonl:2", "\"weight\"", "-1"]),
        (
            "{\"prompt\": \"p\", \"response\": \"r\", \"weight\": 1e300}",
            &["p.jsonl:2", "\"weight\"", "1e+300"],
        ),
        (
            "{\"prompt\": \"p\", \"response\": \"r\", \"weight\": \"2\"}",
            &["p.jsonl:2", "\"weight\"", "a string"],
        ),
        ("{\"prompt\": \"p\", \"response\": \"r\", \"system\": []}", &["p.jsonl:2", "\"system\"", "a list"]),
        ("nonsense", &["p.jsonl:2", "not JSON"]),
    ] {
        let path =
            write(folder.path(), "p.jsonl", format!("{{\"prompt\": \"p\", \"response\": \"r\"}}\n{line}\n"));
        failure(pairs(&[path]).unwrap().collect::<Result<Vec<_>, _>>(), parts);
    }
    let empty = write(folder.path(), "empty.jsonl", "\n");
    failure(pairs(&[empty]).unwrap().collect::<Result<Vec<_>, _>>(), &["empty.jsonl", "no pairs"]);
    let text = write(folder.path(), "p.txt", "x");
    failure(pairs(&[text]), &["p.txt", "pairs", ".jsonl"]);
}

#[test]
fn bad_dialogues_name_the_message() {
    let folder = tempfile::tempdir().unwrap();
    let user = "{\"role\": \"user\", \"content\": \"u\"}";
    for (messages, parts) in [
        ("[]".to_string(), &["d.jsonl:1", "\"messages\"", "empty list"][..]),
        (format!("[{user}]"), &["d.jsonl:1", "\"messages\"", "assistant"]),
        (
            format!("[{user}, {{\"role\": \"bot\", \"content\": \"a\"}}]"),
            &["messages[1].role", "bot", "assistant"],
        ),
        (format!("[{user}, {{\"role\": \"assistant\"}}]"), &["messages[1].content", "missing"]),
        (
            format!("[{user}, {{\"role\": \"assistant\", \"content\": 5}}]"),
            &["messages[1].content", "a number"],
        ),
        (
            format!("[{user}, {{\"role\": \"assistant\", \"content\": \"\"}}]"),
            &["messages[1].content", "empty"],
        ),
        (format!("[{user}, {{\"content\": \"a\"}}]"), &["messages[1].role", "missing"]),
        (format!("[{user}, 4]"), &["messages[1]", "a number"]),
        ("\"hello\"".to_string(), &["\"messages\"", "a string", "a list"]),
    ] {
        let path = write(folder.path(), "d.jsonl", format!("{{\"messages\": {messages}}}"));
        failure(dialogues(&[path]).unwrap().collect::<Result<Vec<_>, _>>(), parts);
    }
    let path = write(folder.path(), "d.jsonl", "{\"turns\": []}");
    failure(
        dialogues(&[path]).unwrap().collect::<Result<Vec<_>, _>>(),
        &["\"messages\"", "missing", "turns"],
    );
}

#[test]
fn tasks_take_a_prompt_or_messages() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(
        folder.path(),
        "t.jsonl",
        "{\"prompt\": \"1+1?\", \"answer\": \"2\", \"family\": \"sum\", \"level\": 3}\n\
         {\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"answer\": \"ho\"}\n",
    );
    let all: Vec<_> = tasks(&[path]).unwrap().map(Result::unwrap).collect();
    assert_eq!(
        (all[0].messages.len(), all[0].family.as_deref(), all[1].family.as_deref()),
        (1, Some("sum"), None)
    );
    for (line, parts) in [
        ("{\"prompt\": \"p\", \"response\": \"r\"}", &["\"answer\"", "missing", "rename"][..]),
        ("{\"answer\": \"r\"}", &["\"prompt\"", "missing"]),
        ("{\"prompt\": \"p\", \"answer\": 2}", &["\"answer\"", "a number"]),
        ("{\"prompt\": \"p\", \"messages\": [], \"answer\": \"a\"}", &["\"messages\"", "both"]),
        (
            "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}], \"answer\": \"a\"}",
            &["\"messages\"", "last message"],
        ),
    ] {
        let path = write(folder.path(), "t.jsonl", line);
        failure(tasks(&[path]).unwrap().collect::<Result<Vec<_>, _>>(), parts);
    }
}
