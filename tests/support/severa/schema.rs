//! What Severa's API takes and gives, by name and type: `tests/severa/openapi.yaml`, read.
//!
//! In: a request's method, path, query and body; an answer's status and body. Out: what is wrong with it, in words.
//! The fake checks what comes in and what it sends itself; nothing here knows what the fields mean.

#![allow(dead_code, clippy::unwrap_used)] // each user needs another half; in tests a panic is the answer

use jsonschema::Validator;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

/// The file, read once a process.
pub static SCHEMA: LazyLock<Schema> =
    LazyLock::new(|| Schema::read(include_str!("../../severa/openapi.yaml")));

pub struct Schema {
    operations: Vec<Operation>,
    /// Every scope there is.
    pub scopes: BTreeSet<String>,
    /// The JSON part before each file of an upload.
    pub file_part: Validator,
}

/// A method on a path.
pub struct Operation {
    pub method: String,
    /// With the path parameters' names in braces.
    pub template: String,
    parameters: BTreeMap<String, Parameter>,
    /// Content type and, of JSON, what it must be.
    body: Option<(String, Option<Validator>)>,
    answers: BTreeMap<String, Option<Validator>>,
    /// Whether a token is needed, and the scope it must have.
    pub scope: Option<String>,
}

struct Parameter {
    repeated: bool,
    kind: String,
    int32: bool,
    validator: Validator,
}

impl Schema {
    fn read(text: &str) -> Self {
        let page: Value = serde_saphyr::from_str(text).unwrap();
        let components = plain(&page["components"]);
        let mut scopes = BTreeSet::new();
        let mut operations = Vec::new();
        for (template, methods) in page["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let operation = Operation::read(method, template, operation, &page, &components);
                scopes.extend(operation.scope.clone());
                operations.push(operation);
            }
        }
        let file_part = validator(&json!({"$ref": "#/components/schemas/ProjectFilePart"}), &components);
        Self { operations, scopes, file_part }
    }

    /// The operation of a request, and the values of the path's parameters.
    pub fn find<'s>(&self, method: &str, path: &'s str) -> Option<(&Operation, Vec<&'s str>)> {
        self.operations.iter().filter(|operation| operation.method == method).find_map(|operation| {
            let (mut names, mut parts) = (operation.template.split('/'), path.split('/'));
            let mut values = Vec::new();
            loop {
                match (names.next(), parts.next()) {
                    (None, None) => return Some((operation, values)),
                    (Some(name), Some(part)) if name.starts_with('{') && !part.is_empty() => {
                        values.push(part)
                    }
                    (Some(name), Some(part)) if name == part => {}
                    _ => return None,
                }
            }
        })
    }

    /// Whether a template is one of the file's: a test that names another would wait in vain.
    pub fn has(&self, method: &str, template: &str) -> bool {
        self.operations.iter().any(|operation| operation.method == method && operation.template == template)
    }
}

impl Operation {
    fn read(method: &str, template: &str, operation: &Value, page: &Value, components: &Value) -> Self {
        let empty = Vec::new();
        let parameters = operation["parameters"].as_array().unwrap_or(&empty).iter();
        let parameters = parameters.filter(|parameter| parameter["in"] == "query").map(|parameter| {
            let schema = &parameter["schema"];
            let repeated = schema["type"] == "array";
            let one = if repeated { &schema["items"] } else { schema };
            let kind = one["type"].as_str().unwrap_or("string").to_owned();
            let int32 = one["format"] == "int32";
            let validator = validator(&plain(one), components);
            (parameter["name"].as_str().unwrap().to_owned(), Parameter { repeated, kind, int32, validator })
        });
        let body = operation["requestBody"]["content"].as_object().map(|content| {
            let (content_type, content) = content.iter().next().unwrap();
            let json = content_type == "application/json";
            (content_type.clone(), json.then(|| validator(&plain(&content["schema"]), components)))
        });
        let answers = operation["responses"].as_object().unwrap().iter().map(|(status, answer)| {
            let answer = match answer["$ref"].as_str() {
                Some(place) => page.pointer(place.trim_start_matches('#')).unwrap(),
                None => answer,
            };
            let schema = &answer["content"]["application/json"]["schema"];
            (status.clone(), (!schema.is_null()).then(|| validator(&plain(schema), components)))
        });
        Self {
            method: method.to_uppercase(),
            template: template.to_owned(),
            parameters: parameters.collect(),
            body,
            answers: answers.collect(),
            scope: operation["security"][0]["OAuth2"][0].as_str().map(str::to_owned),
        }
    }

    /// What is wrong with the query.
    pub fn wrongs_of_query(&self, query: &[(String, String)]) -> Vec<String> {
        let mut wrongs = Vec::new();
        let mut seen = BTreeSet::new();
        for (name, text) in query {
            let Some(parameter) = self.parameters.get(name) else {
                wrongs.push(format!("no such query parameter: {name}"));
                continue;
            };
            if !seen.insert(name) && !parameter.repeated {
                wrongs.push(format!("query parameter twice: {name}"));
            }
            if let Err(wrong) = parameter.check(text) {
                wrongs.push(format!("query parameter {name}={text}: {wrong}"));
            }
        }
        wrongs
    }

    /// What is wrong with the body; a JSON body's value.
    pub fn read_body(&self, content_type: &str, body: &[u8]) -> Result<Value, Vec<String>> {
        let Some((expected, schema)) = &self.body else {
            return if body.is_empty() {
                Ok(Value::Null)
            } else {
                Err(vec!["a body where none belongs".to_owned()])
            };
        };
        let essence = content_type.split(';').next().unwrap().trim();
        if !essence.eq_ignore_ascii_case(expected) {
            return Err(vec![format!("content type {content_type:?} instead of {expected}")]);
        }
        let Some(schema) = schema else { return Ok(Value::Null) };
        let value: Value = serde_json::from_slice(body).map_err(|error| vec![error.to_string()])?;
        let wrongs = wrongs_of(schema, &value);
        if wrongs.is_empty() { Ok(value) } else { Err(wrongs) }
    }

    /// What is wrong with an answer of ours.
    pub fn wrongs_of_answer(&self, status: u16, body: &[u8]) -> Vec<String> {
        let answer = self.answers.get(&status.to_string()).or_else(|| self.answers.get("default"));
        match answer {
            None => vec![format!("no such answer: {status}")],
            Some(None) => Vec::new(),
            Some(Some(schema)) => match serde_json::from_slice(body) {
                Ok(value) => wrongs_of(schema, &value),
                Err(error) => vec![error.to_string()],
            },
        }
    }
}

impl Parameter {
    fn check(&self, text: &str) -> Result<(), String> {
        let value = match self.kind.as_str() {
            "integer" if self.int32 => json!(text.parse::<i32>().map_err(|error| error.to_string())?),
            "integer" => json!(text.parse::<i64>().map_err(|error| error.to_string())?),
            "number" => json!(text.parse::<f64>().map_err(|error| error.to_string())?),
            "boolean" => json!(text.parse::<bool>().map_err(|error| error.to_string())?),
            _ => json!(text),
        };
        self.validator.validate(&value).map_err(|error| error.to_string())
    }
}

/// What is wrong with a value, each with its place.
pub fn wrongs_of(schema: &Validator, value: &Value) -> Vec<String> {
    schema.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// A schema with what it refers to.
fn validator(schema: &Value, components: &Value) -> Validator {
    let mut schema = schema.clone();
    schema["components"] = components.clone();
    jsonschema::draft202012::options().should_validate_formats(true).build(&schema).unwrap()
}

/// OpenAPI 3.0's `nullable` in the words of JSON Schema, which wants null among an `enum` too.
fn plain(schema: &Value) -> Value {
    match schema {
        Value::Object(fields) => {
            let mut fields: serde_json::Map<_, _> =
                fields.iter().map(|(name, value)| (name.clone(), plain(value))).collect();
            if fields.get("nullable") == Some(&Value::Bool(true)) {
                fields.remove("nullable");
                let kind = fields["type"].clone();
                fields.insert("type".to_owned(), json!([kind, "null"]));
                if let Some(Value::Array(values)) = fields.get_mut("enum") {
                    values.push(Value::Null);
                }
            }
            Value::Object(fields)
        }
        Value::Array(values) => Value::Array(values.iter().map(plain).collect()),
        other => other.clone(),
    }
}
