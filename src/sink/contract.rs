//! Holds `docs/backend-api.yaml` and the types together: each schema of the page has the shape of its type, member by
//! member, and its examples are read by the type.

use crate::activity::Activity;
use crate::directory::wire::{ResolveAnswer, ResolveRequest, TenantAnswer};
use schemars::{JsonSchema, generate::SchemaSettings};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

fn page() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/backend-api.yaml");
    serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// What of a schema is the contract: types, members, which of them are always there, values.
fn shape(root: &Value, schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        return shape(root, root.pointer(reference.trim_start_matches('#')).unwrap());
    }
    if let Some(values) = schema["enum"].as_array() {
        let mut values: Vec<_> = values.iter().map(|value| value.as_str().unwrap()).collect();
        values.sort_unstable();
        return values.join("|");
    }
    if let Some(value) = schema["const"].as_str() {
        return value.to_owned();
    }
    if let Some(ways) = schema["anyOf"].as_array().or(schema["oneOf"].as_array()) {
        let mut ways: Vec<_> = ways.iter().map(|way| shape(root, way)).collect();
        ways.sort();
        return ways.join("|");
    }
    let mut types: Vec<String> = match &schema["type"] {
        Value::Array(types) => types.iter().map(|t| t.as_str().unwrap().to_owned()).collect(),
        one => vec![one.as_str().unwrap_or_else(|| panic!("no type: {schema}")).to_owned()],
    };
    types.sort();
    match types.join("|").as_str() {
        "array" => format!("[{}]", shape(root, &schema["items"])),
        "object" => {
            let required = schema["required"].as_array().cloned().unwrap_or_default();
            let members: BTreeMap<_, _> = schema["properties"].as_object().unwrap().iter().collect();
            let member = |(name, schema): (&String, &Value)| {
                let mark = if required.contains(&Value::from(name.as_str())) { "!" } else { "" };
                format!("{name}{mark}: {}", shape(root, schema))
            };
            format!("{{{}}}", members.into_iter().map(member).collect::<Vec<_>>().join(", "))
        }
        types => types.to_owned(),
    }
}

/// The shape of a type as we write it or as we read it.
fn shape_of<T: JsonSchema>(settings: SchemaSettings) -> String {
    let schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    shape(&schema, &schema)
}

fn written() -> SchemaSettings {
    SchemaSettings::draft2020_12().for_serialize()
}

fn read() -> SchemaSettings {
    SchemaSettings::draft2020_12().for_deserialize()
}

#[test]
fn the_page_has_the_shape_of_the_types() {
    let page = page();
    let documented = |name: &str| shape(&page, &page["components"]["schemas"][name]);
    // An optional member of a participant is left out, not null.
    let activity = shape_of::<Activity>(written());
    let activity = activity
        .replace("customer_id: null|string", "customer_id: string")
        .replace(" id: null|string", " id: string");
    assert_eq!(documented("Activity"), activity);
    assert_eq!(documented("ResolveRequest"), shape_of::<ResolveRequest>(written()));
    assert_eq!(documented("ResolveAnswer"), shape_of::<ResolveAnswer>(read()));
    assert_eq!(documented("Tenant"), shape_of::<TenantAnswer>(read()));
}

#[test]
fn the_examples_are_read_by_the_types() {
    fn reads<T: DeserializeOwned + serde::Serialize>(example: &Value) {
        let read: T = serde_json::from_value(example.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), *example);
    }
    let page = page();
    let at = |pointer: &str| page.pointer(pointer).unwrap_or_else(|| panic!("the page has no {pointer}"));
    reads::<Activity>(at("/components/examples/Plain/value/activity"));
    let tenant =
        "/paths/~1v1~1tenants~1{prefix}/get/responses/200/content/application~1json/examples/tenant/value";
    reads::<TenantAnswer>(at(tenant));
    let resolve = "/paths/~1v1~1tenants~1{prefix}~1resolve/post";
    reads::<ResolveRequest>(at(&format!(
        "{resolve}/requestBody/content/application~1json/examples/both/value"
    )));
    reads::<ResolveAnswer>(at(&format!(
        "{resolve}/responses/200/content/application~1json/examples/both/value"
    )));
}
