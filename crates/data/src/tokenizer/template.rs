//! Chat templates: Jinja as `transformers` runs it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{Environment, ErrorKind};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::folder::token_name;
use crate::error::DataError;

/// Steps a template may take: a long dialogue needs some ten thousand, an endless loop is cut off.
const FUEL: u64 = 5_000_000;

/// One compiled chat template.
#[derive(Clone)]
pub struct ChatTemplate {
    source: String,
    environment: Arc<Environment<'static>>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles `source`.
    ///
    /// # Errors
    /// [`DataError::Template`] with the place of a syntax error.
    pub fn new(source: &str) -> Result<ChatTemplate, DataError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| problem(&error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned("chat", without_generation_blocks(source))
            .map_err(|error| problem(&error))?;
        Ok(ChatTemplate { source: source.to_string(), environment: Arc::new(environment) })
    }

    /// The template as written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders with `variables`, among them `messages` and `add_generation_prompt`.
    ///
    /// # Errors
    /// [`DataError::Template`]: what the template raised, a mistake in it, or too many steps.
    pub fn render(&self, variables: &Map<String, Value>) -> Result<String, DataError> {
        let template = self.environment.get_template("chat").map_err(|error| problem(&error))?;
        template.render(Jinja::from(minijinja::value::Serde(variables))).map_err(|error| problem(&error))
    }
}

fn problem(error: &minijinja::Error) -> DataError {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    DataError::Template { problem: text }
}

/// `tojson` as `transformers` defines it: Python's separators `", "` and `": "`, nothing escaped for
/// HTML, non-ASCII as it is.
fn to_json(value: &Jinja, arguments: Kwargs) -> Result<Jinja, minijinja::Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    // Options of json.dumps that only restate the defaults here.
    let _: Option<Jinja> = arguments.get("ensure_ascii")?;
    let _: Option<Jinja> = arguments.get("separators")?;
    let _: Option<Jinja> = arguments.get("sort_keys")?;
    arguments.assert_all_used()?;
    let failed =
        |error: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut bytes = Vec::new();
    if let Some(indent) = indent {
        let spaces = vec![b' '; indent.min(16)];
        let formatter = serde_json::ser::PrettyFormatter::with_indent(&spaces);
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
        value.serialize(&mut serializer).map_err(failed)?;
    } else {
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, PythonFormatter);
        value.serialize(&mut serializer).map_err(failed)?;
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Jinja::from_safe_string(text))
}

struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: std::io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: std::io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: std::io::Write + ?Sized>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// `{% generation %}` marks answers for training in `transformers` and changes nothing in the text;
/// the engine here does not know it, so it becomes a condition that always holds.
fn without_generation_blocks(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        let Some(length) = tag.find("%}") else { break };
        let (tag, after) = tag.split_at(length + 2);
        let inner = &tag[2..length];
        let word = inner.trim_matches(['-', '+', ' ', '\t', '\n', '\r']);
        result.push_str(before);
        match word {
            "generation" | "endgeneration" => {
                let word_start = inner.find(word).unwrap_or(0) + 2;
                result.push_str(&tag[..word_start]);
                result.push_str(if word == "generation" { "if true" } else { "endif" });
                result.push_str(&tag[word_start + word.len()..]);
            }
            _ => result.push_str(tag),
        }
        rest = after;
    }
    result + rest
}

/// Templates that stand in files of their own.
#[derive(Default)]
pub(super) struct Sources {
    default: Option<String>,
    named: BTreeMap<String, String>,
}

impl Sources {
    pub fn read(folder: &Path) -> Result<Sources, DataError> {
        let mut sources = Sources::default();
        let path = folder.join("chat_template.jinja");
        if path.is_file() {
            sources.default = Some(std::fs::read_to_string(&path).map_err(DataError::io(&path, "read"))?);
        }
        let more = folder.join("additional_chat_templates");
        if more.is_dir() {
            for entry in std::fs::read_dir(&more).map_err(DataError::io(&more, "list"))? {
                let path = entry.map_err(DataError::io(&more, "list"))?.path();
                let name = path.file_stem().and_then(|name| name.to_str());
                let (Some("jinja"), Some(name)) = (path.extension().and_then(|e| e.to_str()), name) else {
                    continue;
                };
                let source = std::fs::read_to_string(&path).map_err(DataError::io(&path, "read"))?;
                sources.named.insert(name.to_string(), source);
            }
        }
        Ok(sources)
    }
}

/// The templates of a tokenizer, and the tokens they may name.
#[derive(Debug)]
pub(super) struct Templates {
    default: Option<ChatTemplate>,
    named: BTreeMap<String, ChatTemplate>,
    tokens: Map<String, Value>,
}

impl Templates {
    pub fn new(config: &Map<String, Value>, sources: Sources) -> Result<Templates, DataError> {
        let mut default = None;
        let mut named = BTreeMap::new();
        match config.get("chat_template") {
            None | Some(Value::Null) => {}
            Some(Value::String(source)) => default = Some(source.clone()),
            Some(Value::Array(list)) => {
                for entry in list {
                    let text = |field: &str| entry.get(field).and_then(Value::as_str).map(String::from);
                    let (Some(name), Some(source)) = (text("name"), text("template")) else {
                        let problem = format!("expected a list of {{\"name\", \"template\"}}, found {entry}");
                        return Err(DataError::Template { problem });
                    };
                    named.insert(name, source);
                }
            }
            Some(other) => {
                let problem = format!("expected a string or a list of named templates, found {other}");
                return Err(DataError::Template { problem });
            }
        }
        named.extend(sources.named);
        let default = sources.default.or(default).or_else(|| named.remove("default"));
        let tokens = config
            .iter()
            .filter(|(name, _)| name.ends_with("_token"))
            .filter_map(|(name, value)| Some((name.clone(), json!(token_name(Some(value))?))))
            .collect();
        let named: Result<_, DataError> =
            named.into_iter().map(|(name, source)| Ok((name, ChatTemplate::new(&source)?))).collect();
        Ok(Templates {
            default: default.as_deref().map(ChatTemplate::new).transpose()?,
            named: named?,
            tokens,
        })
    }

    /// The template of that name, or the one that is used without a name.
    pub fn get(&self, name: Option<&str>) -> Result<&ChatTemplate, DataError> {
        let found = match name {
            None | Some("default") => self.default.as_ref(),
            Some(name) => self.named.get(name),
        };
        found.ok_or_else(|| {
            let mut names: Vec<&str> = self.named.keys().map(String::as_str).collect();
            names.extend(self.default.iter().map(|_| "default"));
            let wanted = name.unwrap_or("default");
            let problem = if names.is_empty() {
                "this tokenizer has none; put a chat_template into tokenizer_config.json".to_string()
            } else {
                format!("no template {wanted:?}; this tokenizer has: {}", names.join(", "))
            };
            DataError::Template { problem }
        })
    }

    /// Special tokens by their role, such as `bos_token`.
    pub fn tokens(&self) -> &Map<String, Value> {
        &self.tokens
    }

    /// The field `chat_template` of `tokenizer_config.json`.
    pub fn to_config(&self) -> Option<Value> {
        let default = self.default.as_ref();
        if self.named.is_empty() {
            return default.map(|template| json!(template.source));
        }
        let all = default.iter().map(|template| ("default", *template));
        let all = all.chain(self.named.iter().map(|(name, template)| (name.as_str(), template)));
        Some(all.map(|(name, template)| json!({"name": name, "template": template.source})).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, variables: Value) -> Result<String, DataError> {
        ChatTemplate::new(source)?.render(variables.as_object().unwrap())
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        // json.dumps({"b": ["é", 1, 2.5, None, True], "a": {"<x>": "it's \"&\""}}, ensure_ascii=False)
        let value = json!({"x": {"b": ["é", 1, 2.5, null, true], "a": {"<x>": "it's \"&\""}}});
        let text = render("{{ x | tojson }}", value.clone()).unwrap();
        assert_eq!(text, r#"{"b": ["é", 1, 2.5, null, true], "a": {"<x>": "it's \"&\""}}"#);
        let text = render("{{ x.a | tojson(indent=4) }}", value).unwrap();
        assert_eq!(text, "{\n    \"<x>\": \"it's \\\"&\\\"\"\n}");
    }

    #[test]
    fn an_endless_template_is_stopped() {
        let source =
            "{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}";
        let error = render(source, json!({})).unwrap_err().to_string();
        assert!(error.contains("fuel"), "{error}");
    }

    #[test]
    fn what_a_template_raises_is_reported() {
        let error = render("{{ raise_exception('take turns') }}", json!({})).unwrap_err().to_string();
        assert!(error.contains("take turns"), "{error}");
        let error = render("{% if %}", json!({})).unwrap_err().to_string();
        assert!(error.starts_with("chat template: "), "{error}");
    }

    #[test]
    fn generation_blocks_change_nothing() {
        let source = "a\n{% generation %}\n{{ x }}{%- endgeneration -%}\n b";
        assert_eq!(render(source, json!({"x": "y"})).unwrap(), "a\nyb");
    }
}
