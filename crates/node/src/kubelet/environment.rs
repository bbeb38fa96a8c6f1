//! A container's environment: all of Kubernetes' sources, and `$(VAR)` in values, commands, arguments and paths.
//!
//! What is read of the cluster comes first ([`read`]); what is made of it ([`build`]) is plain work, linear in what was
//! read, and bounded by what the kernel hands to a program: everything is counted before memory is taken for it (X4).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use k8s_openapi::api::core::v1::{Container, EnvVarSource};
use mainstay_api::ObjectKey;
use serde_json::Value;

use super::objects::{Reference, ServiceAddress, Services, Watched};
use super::{Kubelet, PodContext, resources};

/// What a container's environment and volumes depend on.
pub type Dependencies = BTreeMap<Reference, Arc<Watched>>;

/// The longest argument, or variable with its name, that the kernel hands to a program, in bytes with its end
/// (MAX_ARG_STRLEN).
const LONGEST: usize = 128 << 10;
/// What arguments and environment may come to together, in bytes; no kernel takes more, whatever the stack's limit.
const ALL: usize = 6 << 20;
/// What each string takes beside its bytes: its end and its place in the list.
const EACH: usize = 9;
/// What of ConfigMaps and Secrets is looked through for one container, in bytes; one that is named twice counts twice.
const READ: usize = 64 << 20;
/// What looking at a key takes beside its bytes.
const KEY: usize = 64;
/// The longest path of the kernel's (PATH_MAX), in bytes with its end.
const LONGEST_PATH: usize = 4096;
/// How much of a stranger's name an error repeats, in characters.
const SHOWN: usize = 64;

/// Variables in their order, each name once.
#[derive(Clone, Debug, Default)]
pub struct Variables {
    ordered: Vec<(String, String)>,
    places: BTreeMap<String, usize>,
    bytes: usize,
}

impl Variables {
    /// The value that a name has.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.places.get(name).and_then(|place| self.ordered.get(*place)).map(|(_, value)| value.as_str())
    }

    /// Gives a name a value, in the place of one that it had.
    ///
    /// # Errors
    /// There would be more than the kernel hands to a program.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let place = self.places.get(name).and_then(|place| self.ordered.get_mut(*place));
        let (freed, added) = match &place {
            Some((_, old)) => (old.len(), value.len()),
            None => (0, name.len() + 1 + value.len() + EACH),
        };
        let bytes = self.bytes - freed + added;
        if bytes > ALL {
            return Err(format!("the environment is longer than {ALL} bytes"));
        }
        self.bytes = bytes;
        match place {
            Some((_, old)) => value.clone_into(old),
            None => {
                self.places.insert(name.to_owned(), self.ordered.len());
                self.ordered.push((name.to_owned(), value.to_owned()));
            }
        }
        Ok(())
    }

    /// All, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.ordered.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// All, in their order, for a program.
    ///
    /// # Errors
    /// One is longer than what the kernel hands to a program.
    pub fn into_list(self) -> Result<Vec<(String, String)>, String> {
        match self.ordered.iter().find(|(name, value)| name.len() + value.len() + 2 > LONGEST) {
            Some((name, _)) => Err(too_long(&format!("environment variable {}", shown(name)))),
            None => Ok(self.ordered),
        }
    }
}

fn shown(name: &str) -> String {
    name.chars().take(SHOWN).collect()
}

fn too_long(what: &str) -> String {
    format!("{what} is longer than {LONGEST} bytes")
}

/// What a container's environment is made of, as it was read.
#[derive(Clone)]
pub struct Sources {
    services: Arc<Services>,
    objects: BTreeMap<Reference, Option<Arc<Value>>>,
}

/// The addresses that the downward API tells of.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub node: String,
    pub pod: Option<String>,
}

/// Reads what the container's environment names: Services, ConfigMaps, Secrets. An error is a
/// `CreateContainerConfigError`.
pub async fn read(
    kubelet: &Kubelet,
    context: &PodContext,
    container: &Container,
    dependencies: &mut Dependencies,
) -> Result<Sources, String> {
    let mut sources = Sources { services: kubelet.objects.services().await?, objects: BTreeMap::new() };
    let lists = container.env_from.iter().flatten().filter_map(|source| {
        let of_map = source.config_map_ref.as_ref().map(|map| ("configmaps", &map.name, map.optional));
        of_map.or_else(|| source.secret_ref.as_ref().map(|secret| ("secrets", &secret.name, secret.optional)))
    });
    let keys = container.env.iter().flatten().filter_map(|variable| {
        let source = variable.value_from.as_ref()?;
        let of_map = source.config_map_key_ref.as_ref().map(|map| ("configmaps", &map.name, map.optional));
        of_map.or_else(|| source.secret_key_ref.as_ref().map(|secret| ("secrets", &secret.name, secret.optional)))
    });
    for (plural, name, optional) in lists.chain(keys) {
        let reference = reference(context, plural, name);
        let known = match sources.objects.get(&reference) {
            Some(known) => known.clone(),
            None => {
                let found = object(kubelet, context, plural, name, true, dependencies).await?;
                sources.objects.insert(reference, found.clone());
                found
            }
        };
        if known.is_none() && optional != Some(true) {
            return Err(not_found(plural, name));
        }
    }
    Ok(sources)
}

fn reference(context: &PodContext, plural: &'static str, name: &str) -> Reference {
    Reference { plural, key: ObjectKey::new(context.namespace.as_str(), name) }
}

fn not_found(plural: &str, name: &str) -> String {
    format!("{} \"{name}\" not found", plural.trim_end_matches('s'))
}

/// Service variables, then `envFrom`, then `env`; later ones win. An error is a `CreateContainerConfigError`.
pub fn build(
    context: &PodContext,
    container: &Container,
    addresses: &Addresses,
    sources: &Sources,
) -> Result<Variables, String> {
    let mut variables = Variables::default();
    let links = context.spec().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let mut all = BTreeMap::new();
    for (key, service) in sources.services.iter().flatten() {
        let kubernetes = &*key.namespace == "default" && &*key.name == "kubernetes";
        if kubernetes || (links && *key.namespace == *context.namespace) {
            all.extend(service_variables(&key.name, service));
        }
    }
    for (name, value) in all {
        variables.set(&name, &value)?;
    }
    let mut left = READ;
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or("");
        let (plural, name) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(map), _) => ("configmaps", &map.name),
            (_, Some(secret)) => ("secrets", &secret.name),
            _ => continue,
        };
        let Some(Some(object)) = sources.objects.get(&reference(context, plural, name)) else { continue };
        for (key, text, encoded) in entries(object) {
            left = left
                .checked_sub(KEY + prefix.len() + key.len() + text.len())
                .ok_or_else(|| format!("envFrom names more than {READ} bytes"))?;
            // What is not text cannot be a variable.
            if let Ok(value) = String::from_utf8(decoded(key, text, encoded)?) {
                variables.set(&format!("{prefix}{key}"), &value)?;
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => {
                let expanded = expand(variable.value.as_deref().unwrap_or(""), &variables, LONGEST);
                Some(expanded.ok_or_else(|| too_long(&format!("environment variable {}", shown(&variable.name))))?)
            }
            Some(source) => from_source(context, container, source, addresses, sources)?,
        };
        if let Some(value) = value {
            variables.set(&variable.name, &value)?;
        }
    }
    Ok(variables)
}

fn from_source(
    context: &PodContext,
    container: &Container,
    source: &EnvVarSource,
    addresses: &Addresses,
    sources: &Sources,
) -> Result<Option<String>, String> {
    if let Some(field) = &source.field_ref {
        return field_value(context, &field.field_path, addresses).map(Some);
    }
    if let Some(field) = &source.resource_field_ref {
        let of = field.container_name.as_deref().and_then(|name| context.container(name)).unwrap_or(container);
        return resources::field(of, &field.resource, field.divisor.as_ref()).map(Some);
    }
    let (plural, kind, name, key, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(map), _) => ("configmaps", "ConfigMap", &map.name, &map.key, map.optional == Some(true)),
        (_, Some(secret)) => ("secrets", "Secret", &secret.name, &secret.key, secret.optional == Some(true)),
        _ => return Err("an environment variable has an unsupported source".to_owned()),
    };
    let Some(Some(object)) = sources.objects.get(&reference(context, plural, name)) else { return Ok(None) };
    match value_of(object, key).transpose()? {
        Some(value) => String::from_utf8(value)
            .map(Some)
            .map_err(|_| format!("key {key} in {kind} {}/{name} is not text", context.namespace)),
        None if optional => Ok(None),
        None => Err(format!("couldn't find key {key} in {kind} {}/{name}", context.namespace)),
    }
}

/// A ConfigMap or Secret of the pod's namespace, watched from now on.
pub async fn object(
    kubelet: &Kubelet,
    context: &PodContext,
    plural: &'static str,
    name: &str,
    optional: bool,
    dependencies: &mut Dependencies,
) -> Result<Option<Arc<Value>>, String> {
    let reference = reference(context, plural, name);
    let watched = kubelet.objects.watch(&reference);
    let found = watched.get().await;
    dependencies.insert(reference, watched);
    match found? {
        None if !optional => Err(not_found(plural, name)),
        found => Ok(found),
    }
}

/// The fields of a ConfigMap or Secret that have keys; whether what they hold is in base64. The later one wins.
fn fields(object: &Value) -> [(&'static str, bool); 2] {
    let secret = object.get("kind").and_then(Value::as_str) == Some("Secret");
    [("data", secret), ("binaryData", true)]
}

/// All keys, with what they hold as it is stored, and whether that is in base64.
fn entries(object: &Value) -> impl Iterator<Item = (&String, &str, bool)> {
    fields(object).into_iter().flat_map(move |(field, encoded)| {
        let all = object.get(field).and_then(Value::as_object).into_iter().flatten();
        all.map(move |(key, value)| (key, value.as_str().unwrap_or(""), encoded))
    })
}

fn decoded(key: &str, text: &str, encoded: bool) -> Result<Vec<u8>, String> {
    if !encoded {
        return Ok(text.as_bytes().to_vec());
    }
    base64::engine::general_purpose::STANDARD.decode(text).map_err(|error| format!("key {}: {error}", shown(key)))
}

/// What one key of a ConfigMap or Secret holds.
pub fn value_of(object: &Value, key: &str) -> Option<Result<Vec<u8>, String>> {
    let mut found = fields(object).into_iter().rev().filter_map(|(field, encoded)| {
        let text = object.get(field)?.get(key)?.as_str().unwrap_or("");
        Some(decoded(key, text, encoded))
    });
    found.next()
}

/// All keys of a ConfigMap or Secret, each once.
pub fn keys(object: &Value) -> BTreeSet<&String> {
    entries(object).map(|(key, ..)| key).collect()
}

/// The downward API: a field of the pod as text.
pub fn field_value(context: &PodContext, path: &str, addresses: &Addresses) -> Result<String, String> {
    let metadata = &context.pod.metadata;
    let spec = context.spec();
    let keyed = |map: &Option<BTreeMap<String, String>>, prefix: &str| {
        let key = path.strip_prefix(prefix)?.strip_suffix("']")?;
        Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    if let Some(value) =
        keyed(&metadata.labels, "metadata.labels['").or_else(|| keyed(&metadata.annotations, "metadata.annotations['"))
    {
        return Ok(value);
    }
    match path {
        "metadata.name" => Ok(context.name.clone()),
        "metadata.namespace" => Ok(context.namespace.clone()),
        "metadata.uid" => Ok(context.uid.clone()),
        "metadata.labels" => Ok(format_map(metadata.labels.as_ref())),
        "metadata.annotations" => Ok(format_map(metadata.annotations.as_ref())),
        "spec.nodeName" => Ok(spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default()),
        "spec.serviceAccountName" => Ok(spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default()),
        "status.hostIP" | "status.hostIPs" => Ok(addresses.node.clone()),
        "status.podIP" | "status.podIPs" => Ok(addresses.pod.clone().unwrap_or_default()),
        _ => Err(format!("unsupported fieldPath: {path}")),
    }
}

/// `key="value"` per line, quoted as upstream quotes.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// `NAME_SERVICE_HOST` and its companions, as Docker links had them.
fn service_variables(name: &str, service: &ServiceAddress) -> Vec<(String, String)> {
    let name = name.to_uppercase().replace('-', "_");
    let ip = &service.cluster_ip;
    let mut all = vec![(format!("{name}_SERVICE_HOST"), ip.clone())];
    if let Some(first) = service.ports.first() {
        all.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
    }
    for port in &service.ports {
        if !port.name.is_empty() {
            all.push((
                format!("{name}_SERVICE_PORT_{}", port.name.to_uppercase().replace('-', "_")),
                port.port.to_string(),
            ));
        }
    }
    for (index, port) in service.ports.iter().enumerate() {
        let protocol = port.protocol.to_lowercase();
        let url = format!("{protocol}://{ip}:{}", port.port);
        if index == 0 {
            all.push((format!("{name}_PORT"), url.clone()));
        }
        let prefix = format!("{name}_PORT_{}_{}", port.port, port.protocol.to_uppercase());
        all.push((prefix.clone(), url));
        all.push((format!("{prefix}_PROTO"), protocol));
        all.push((format!("{prefix}_PORT"), port.port.to_string()));
        all.push((format!("{prefix}_ADDR"), ip.clone()));
    }
    all
}

/// A part of a text with references.
enum Piece<'a> {
    Text(&'a str),
    Reference(&'a str),
}

/// The parts of a text: `$(NAME)` is a reference, `$$` a dollar sign, anything else stays as it is.
struct Pieces<'a> {
    rest: &'a str,
    /// Whether a bracket that closes may follow: that none does is found out once.
    closes: bool,
}

fn pieces(text: &str) -> Pieces<'_> {
    Pieces { rest: text, closes: true }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let Some(after) = self.rest.strip_prefix('$') else {
            let (text, rest) = self.rest.split_at(self.rest.find('$').unwrap_or(self.rest.len()));
            self.rest = rest;
            return Some(Piece::Text(text));
        };
        if let Some(rest) = after.strip_prefix('$') {
            self.rest = rest;
            return Some(Piece::Text("$"));
        }
        if let Some(inner) = after.strip_prefix('(').filter(|_| self.closes) {
            if let Some((name, rest)) = inner.split_once(')') {
                self.rest = rest;
                return Some(Piece::Reference(name));
            }
            self.closes = false;
        }
        self.rest = after;
        Some(Piece::Text("$"))
    }
}

/// A text that does not become longer than what the kernel takes.
struct Bounded {
    text: String,
    most: usize,
}

impl Bounded {
    fn push(&mut self, part: &str) -> Option<()> {
        (self.text.len() + part.len() < self.most).then(|| self.text.push_str(part))
    }
}

/// Replaces `$(NAME)` where the name is known; `$$` is a dollar sign, anything else stays as it is. `None` where that
/// takes `most` bytes or more.
fn expand(text: &str, variables: &Variables, most: usize) -> Option<String> {
    let mut out = Bounded { text: String::new(), most };
    for piece in pieces(text) {
        match piece {
            Piece::Text(text) => out.push(text)?,
            Piece::Reference(name) => match variables.get(name) {
                Some(value) => out.push(value)?,
                None => {
                    out.push("$(")?;
                    out.push(name)?;
                    out.push(")")?;
                }
            },
        }
    }
    Some(out.text)
}

/// Arguments with their references replaced, within what the environment left of the kernel's room.
///
/// # Errors
/// One is longer than what the kernel hands to a program, or all are.
pub fn arguments(all: &[String], variables: &Variables, env: &Variables) -> Result<Vec<String>, String> {
    let mut left = ALL.saturating_sub(env.bytes);
    let mut expanded = Vec::new();
    for (index, one) in all.iter().enumerate() {
        let one = expand(one, variables, LONGEST).ok_or_else(|| too_long(&format!("argument {index}")))?;
        left = left
            .checked_sub(one.len() + EACH)
            .ok_or_else(|| format!("the arguments and the environment are longer than {ALL} bytes"))?;
        expanded.push(one);
    }
    Ok(expanded)
}

/// A `subPathExpr` as a path. Unlike in values and arguments, each variable has to be there and to say something:
/// several pods share a volume by such paths, and none of them may get another one's folder (V6).
///
/// # Errors
/// Which variables are missing, as upstream says it; the path is longer than the kernel's.
pub fn path(expression: &str, variables: &Variables) -> Result<String, String> {
    let mut missing = BTreeSet::new();
    let mut out = Bounded { text: String::new(), most: LONGEST_PATH };
    let too_long = || format!("the path is longer than {LONGEST_PATH} bytes");
    for piece in pieces(expression) {
        match piece {
            Piece::Text(text) => out.push(text).ok_or_else(too_long)?,
            Piece::Reference(name) => match variables.get(name).filter(|value| !value.is_empty()) {
                Some(value) => out.push(value).ok_or_else(too_long)?,
                None => drop(missing.insert(shown(name))),
            },
        }
    }
    if missing.is_empty() {
        return Ok(out.text);
    }
    Err(format!("missing value for {}", missing.into_iter().collect::<Vec<_>>().join(", ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kubelet::objects::ServicePort;

    fn variables(all: &[(&str, &str)]) -> Variables {
        let mut variables = Variables::default();
        for (name, value) in all {
            variables.set(name, value).unwrap();
        }
        variables
    }

    fn built(container: Value, maps: &[(&str, Value)]) -> Result<Variables, String> {
        let pod = json!({ "metadata": { "name": "p", "namespace": "ns", "uid": "u" },
            "spec": { "containers": [container] } });
        let context = PodContext::new(&serde_json::from_value(pod).unwrap());
        let objects = maps.iter().map(|(name, data)| {
            let map = Arc::new(json!({ "kind": "ConfigMap", "data": data }));
            (reference(&context, "configmaps", name), Some(map))
        });
        let sources = Sources { services: Arc::new(Some(BTreeMap::new())), objects: objects.collect() };
        let addresses = Addresses { node: "192.0.2.1".to_owned(), pod: None };
        build(&context, context.container("c").unwrap(), &addresses, &sources)
    }

    /// K8s' variables may name the ones before them: seven levels of ten are a gigabyte.
    #[test]
    fn x4_variables_that_double_each_other_end_at_what_the_kernel_takes() {
        let mut env = vec![json!({ "name": "V0", "value": "x".repeat(100) })];
        for level in 1..20 {
            let value = format!("$(V{})", level - 1).repeat(10);
            env.push(json!({ "name": format!("V{level}"), "value": value }));
        }
        let error = built(json!({ "name": "c", "env": env }), &[]).unwrap_err();
        assert_eq!(error, "environment variable V4 is longer than 131072 bytes");
        // What each of them may be, all of them together may not.
        let mut env = vec![json!({ "name": "V", "value": "x".repeat(100_000) })];
        env.extend((0..100).map(|number| json!({ "name": format!("W{number}"), "value": "$(V)" })));
        let error = built(json!({ "name": "c", "env": env }), &[]).unwrap_err();
        assert_eq!(error, "the environment is longer than 6291456 bytes");
        let big = variables(&[("V", &"x".repeat(100_000))]);
        let none = Variables::default();
        let error = arguments(&vec!["$(V)".to_owned(); 100], &big, &none).unwrap_err();
        assert_eq!(error, "the arguments and the environment are longer than 6291456 bytes");
        let error = arguments(&["a".to_owned(), "$(V)$(V)".to_owned()], &big, &none).unwrap_err();
        assert_eq!(error, "argument 1 is longer than 131072 bytes");
        assert!(path("$(V)", &big).is_err());
        // A value that no program gets, in its full length.
        let long = variables(&[("L", &"x".repeat(LONGEST - 3))]);
        assert_eq!(long.clone().into_list().unwrap().len(), 1);
        let longer = variables(&[("L", &"x".repeat(LONGEST - 2))]);
        assert_eq!(longer.into_list().unwrap_err(), "environment variable L is longer than 131072 bytes");
    }

    #[test]
    fn x4_what_envfrom_names_again_and_again_is_not_read_for_ever() {
        let data: serde_json::Map<String, Value> = (0..2000).map(|n| (format!("k{n}"), json!("v"))).collect();
        let maps = [("m", Value::Object(data))];
        let one = json!({ "configMapRef": { "name": "m" } });
        let all = built(json!({ "name": "c", "envFrom": [one, one] }), &maps).unwrap();
        assert_eq!(all.iter().count(), 2000, "each name once");
        let many = built(json!({ "name": "c", "envFrom": vec![one; 1000] }), &maps).unwrap_err();
        assert_eq!(many, "envFrom names more than 67108864 bytes");
        // References to nothing that closes are looked through once.
        let open = "$(".repeat(500_000);
        assert_eq!(pieces(&open).count(), 1_000_000);
        assert_eq!(expand("$($($(", &Variables::default(), LONGEST).as_deref(), Some("$($($("));
    }

    #[test]
    fn later_sources_win_and_are_counted_once() {
        let mut all = variables(&[("A", "1"), ("B", "2")]);
        let before = all.bytes;
        all.set("A", "3").unwrap();
        assert_eq!((all.get("A"), all.bytes), (Some("3"), before));
        assert_eq!(all.iter().collect::<Vec<_>>(), [("A", "3"), ("B", "2")]);
        let container = json!({ "name": "c", "envFrom": [{ "prefix": "P_", "configMapRef": { "name": "m" } }],
            "env": [{ "name": "P_b", "value": "$(P_a)!" },
                { "name": "k", "valueFrom": { "configMapKeyRef": { "name": "m", "key": "a" } } }] });
        let all = built(container, &[("m", json!({ "a": "1", "b": "2" }))]).unwrap();
        assert_eq!(
            all.into_list().unwrap(),
            [("P_a", "1"), ("P_b", "1!"), ("k", "1")].map(|(name, value)| { (name.to_owned(), value.to_owned()) })
        );
    }

    /// V6: of pods that share a volume by such a path none gets the folder above the others'.
    #[test]
    fn v6_a_path_of_a_variable_that_says_nothing_is_refused() {
        let known = variables(&[("A", "1"), ("E", "")]);
        for (expression, expected) in [
            ("data/$(A)", Ok("data/1")),
            ("$$(A)", Ok("$(A)")),
            ("$A", Ok("$A")),
            ("$(NOPE)", Err("missing value for NOPE")),
            ("data/$(E)", Err("missing value for E")),
            ("$(Z)/$(A)/$(E)/$(Z)", Err("missing value for E, Z")),
        ] {
            assert_eq!(path(expression, &known).as_deref().map_err(String::as_str), expected, "{expression}");
        }
    }

    #[test]
    fn references_are_expanded_as_upstream_expands_them() {
        let variables = variables(&[("A", "1"), ("B", "$(A)")]);
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(C)", "$(C)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(A)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("ü$(A)ü", "ü1ü"),
            ("$(A)$($(B", "1$($(B"),
            ("$($(A)", "$($(A)"),
        ] {
            assert_eq!(expand(text, &variables, LONGEST).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn service_variables_have_dockers_names() {
        let port = ServicePort { name: "web".into(), port: 80, protocol: "TCP".into() };
        let all = service_variables("my-db", &ServiceAddress { cluster_ip: "10.0.0.5".into(), ports: vec![port] });
        let text: Vec<String> = all.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            text.join("\n"),
            "MY_DB_SERVICE_HOST=10.0.0.5\nMY_DB_SERVICE_PORT=80\nMY_DB_SERVICE_PORT_WEB=80\nMY_DB_PORT=tcp://10.0.0.5:80\n\
             MY_DB_PORT_80_TCP=tcp://10.0.0.5:80\nMY_DB_PORT_80_TCP_PROTO=tcp\nMY_DB_PORT_80_TCP_PORT=80\nMY_DB_PORT_80_TCP_ADDR=10.0.0.5"
        );
    }
}
