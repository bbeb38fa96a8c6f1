//! Which requests a webhook or a policy is about: rules, selectors, and other versions of the same resource.

use std::borrow::Cow;

use mainstay_api::selector::Labels;
use mainstay_api::{Kind, Registry, Status, kinds, object};
use serde::Deserialize;
use serde_json::Value;

use crate::api::Batch;

/// What a request does to an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// Upstream's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// Group, version and kind of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TypeName {
    pub group: Cow<'static, str>,
    pub version: Cow<'static, str>,
    pub kind: Cow<'static, str>,
}

impl TypeName {
    /// The type of a kind's own objects.
    pub fn of(kind: &Kind) -> Self {
        Self { group: kind.group.clone(), version: kind.version.clone(), kind: kind.kind.clone() }
    }
}

/// What admission knows of a request beside its objects.
#[derive(Clone, PartialEq, Debug)]
pub struct Attributes {
    /// The resource.
    pub kind: Kind,
    /// Empty for the object itself.
    pub subresource: String,
    /// What the object in question is where that is no object of the resource (a Scale, an Eviction, PodExecOptions).
    pub object_type: Option<TypeName>,
    /// What is done.
    pub operation: Operation,
    /// Empty for what is in no namespace.
    pub namespace: String,
    /// Of the resource's object.
    pub name: String,
    /// `CreateOptions` and so on, for what the request's parameters do not say (deletions).
    pub options: Value,
}

impl Attributes {
    /// Of a request about an object of a kind.
    pub fn new(kind: &Kind, subresource: &str, operation: Operation, namespace: &str, name: &str) -> Self {
        // As upstream: a namespace is in itself, also when it is made.
        let is_namespace = *kind == kinds::NAMESPACE;
        Self {
            kind: kind.clone(),
            subresource: subresource.to_owned(),
            object_type: None,
            operation,
            namespace: if is_namespace { name } else { namespace }.to_owned(),
            name: name.to_owned(),
            options: Value::Null,
        }
    }

    /// The same about an object of another type.
    #[must_use]
    pub fn with_type(mut self, group: &'static str, version: &'static str, kind: &'static str) -> Self {
        self.object_type = Some(TypeName { group: group.into(), version: version.into(), kind: kind.into() });
        self
    }
}

/// `RuleWithOperations`, and `NamedRuleWithOperations` of policies.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    operations: Vec<String>,
    api_groups: Vec<String>,
    api_versions: Vec<String>,
    resources: Vec<String>,
    resource_names: Vec<String>,
    scope: Option<String>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|own| own == "*" || own == wanted)
}

impl Rule {
    /// Whether a request for `resource` (the attributes' own, or one that is the same in another version) is meant.
    pub fn matches(&self, attributes: &Attributes, resource: &Kind) -> bool {
        has(&self.operations, attributes.operation.word())
            && has(&self.api_groups, &resource.group)
            && has(&self.api_versions, &resource.version)
            && self.matches_scope(attributes)
            && self.resources.iter().any(|text| {
                let (main, sub) = text.split_once('/').unwrap_or((text, ""));
                (main == "*" || *main == resource.plural) && (sub == "*" || sub == attributes.subresource)
            })
            && (self.resource_names.is_empty() || self.resource_names.contains(&attributes.name))
    }

    fn matches_scope(&self, attributes: &Attributes) -> bool {
        let in_namespace = attributes.kind.namespaced && !attributes.namespace.is_empty();
        match self.scope.as_deref() {
            Some("Namespaced") => in_namespace,
            Some("Cluster") => !in_namespace,
            _ => true,
        }
    }
}

/// Which requests are meant: `rules` (and none of `excluded`), whatever the version where not `exact`.
#[derive(Clone, Debug)]
pub struct Constraints {
    pub rules: Vec<Rule>,
    pub excluded: Vec<Rule>,
    /// `matchPolicy: Exact`.
    pub is_exact: bool,
    pub namespaces: Labels,
    pub objects: Labels,
}

/// The JSON of a webhook, or of `MatchResources`, as far as it is about what is meant.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    #[serde(alias = "resourceRules")]
    rules: Vec<Rule>,
    exclude_resource_rules: Vec<Rule>,
    match_policy: Option<String>,
    namespace_selector: Option<Value>,
    object_selector: Option<Value>,
}

impl Constraints {
    /// Of a webhook, or of `MatchResources`. A missing selector selects everything.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub fn read(written: &Value) -> Result<Self, String> {
        let written: Written = serde_json::from_value(written.clone()).map_err(|error| error.to_string())?;
        let labels = |selector: &Option<Value>| match selector {
            None | Some(Value::Null) => Ok(Labels::everything()),
            some => Labels::from_json(some.as_ref()),
        };
        Ok(Self {
            namespaces: labels(&written.namespace_selector)?,
            objects: labels(&written.object_selector)?,
            rules: written.rules,
            excluded: written.exclude_resource_rules,
            is_exact: written.match_policy.as_deref() == Some("Exact"),
        })
    }

    /// As which kind the request is meant, by rules alone: its own, or one that has the same objects in another
    /// version.
    pub fn resource(&self, registry: &Registry, attributes: &Attributes) -> Option<Kind> {
        let own = &attributes.kind;
        if self.hits(&self.excluded, registry, attributes).is_some() {
            return None;
        }
        self.hits(&self.rules, registry, attributes).or_else(|| {
            // A binding's constraints may have no rules: then all are meant.
            self.rules.is_empty().then(|| own.clone())
        })
    }

    fn hits(&self, rules: &[Rule], registry: &Registry, attributes: &Attributes) -> Option<Kind> {
        let own = &attributes.kind;
        if rules.iter().any(|rule| rule.matches(attributes, own)) {
            return Some(own.clone());
        }
        if self.is_exact || rules.is_empty() {
            return None;
        }
        let others = equivalents(registry, own);
        rules.iter().find_map(|rule| others.iter().find(|other| rule.matches(attributes, other)).cloned())
    }

    /// Whether the selectors select what is written.
    ///
    /// # Errors
    /// 404 where the request's namespace, whose labels are asked for, is not there.
    pub fn selects(
        &self,
        batch: &mut Batch<'_>,
        attributes: &Attributes,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> Result<bool, Status> {
        let wanted = &self.objects;
        if !wanted.is_everything() && ![object, old].into_iter().flatten().any(|object| wanted.matches_object(object)) {
            return Ok(false);
        }
        if self.namespaces.is_everything() {
            return Ok(true);
        }
        if attributes.kind == kinds::NAMESPACE {
            let is_written = matches!(attributes.operation, Operation::Create | Operation::Update);
            let shown = if is_written { object.or(old) } else { old.or(object) };
            return Ok(shown.is_none_or(|namespace| self.namespaces.matches_object(namespace)));
        }
        if attributes.namespace.is_empty() {
            return Ok(true);
        }
        let namespace = batch.must_get(&kinds::NAMESPACE, "", &attributes.namespace)?;
        Ok(self.namespaces.matches_object(&namespace))
    }
}

/// The other kinds whose objects are the same ones.
fn equivalents(registry: &Registry, kind: &Kind) -> Vec<Kind> {
    let stored = kind.stored();
    let mut found: Vec<Kind> =
        registry.versions(&kind.group, &kind.plural).iter().filter(|other| *other != kind).cloned().collect();
    if stored.group != kind.group {
        found.extend(registry.versions(&stored.group, &stored.plural).iter().cloned());
    } else {
        let elsewhere = registry.all().iter().filter(|other| other.group != kind.group && other.stored() == stored);
        found.extend(elsewhere.cloned());
    }
    found
}

/// An object of one kind as another kind that has the same objects.
pub fn converted(object: &Value, from: &Kind, to: &Kind) -> Value {
    let mut object = object.clone();
    if from != to {
        from.to_stored(&mut object);
        to.from_stored(&mut object);
    }
    object
}

/// Whether a kind is one that says what admission does: these are never asked about, so that a mistake can be mended.
pub fn is_exempt(kind: &Kind) -> bool {
    kind.group == super::GROUP
}

/// The labels of a request's namespace, as policies see it; null where it is in none.
pub fn namespace_of(batch: &mut Batch<'_>, attributes: &Attributes) -> Result<Value, Status> {
    if attributes.namespace.is_empty() || !attributes.kind.namespaced {
        return Ok(Value::Null);
    }
    Ok(batch.get(&kinds::NAMESPACE, "", &attributes.namespace)?.unwrap_or(Value::Null))
}

/// The name under which a request's object is known: that of the path, else its own.
pub fn name_of(attributes: &Attributes, object: Option<&Value>) -> String {
    match attributes.name.as_str() {
        "" => object.map(object::name).unwrap_or_default().to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn attributes(kind: &Kind, subresource: &str, operation: Operation) -> Attributes {
        let namespace = if kind.namespaced { "ns" } else { "" };
        Attributes::new(kind, subresource, operation, namespace, "a")
    }

    fn meant(rule: Value, policy: &str, attributes: &Attributes) -> Option<String> {
        let hook = json!({ "rules": [rule], "matchPolicy": policy });
        let constraints = Constraints::read(&hook).expect("a webhook");
        constraints.resource(&Registry::built_in(), attributes).map(|kind| kind.api_version())
    }

    fn rule(operations: &[&str], groups: &[&str], versions: &[&str], resources: &[&str], scope: &str) -> Value {
        json!({ "operations": operations, "apiGroups": groups, "apiVersions": versions, "resources": resources,
            "scope": scope })
    }

    #[test]
    fn rules_mean_what_upstreams_do() {
        let pod = |sub: &str, operation| attributes(&kinds::POD, sub, operation);
        let core = |resources: &[&str]| rule(&["*"], &[""], &["v1"], resources, "*");
        let table = [
            (core(&["pods"]), pod("", Operation::Create), true),
            (core(&["pods"]), pod("status", Operation::Update), false),
            (core(&["pods/*"]), pod("status", Operation::Update), true),
            (core(&["pods/*"]), pod("", Operation::Update), true),
            (core(&["*"]), pod("", Operation::Delete), true),
            (core(&["*"]), pod("exec", Operation::Connect), false),
            (core(&["*/*"]), pod("exec", Operation::Connect), true),
            (core(&["*/exec"]), pod("exec", Operation::Connect), true),
            (core(&["*/exec"]), pod("", Operation::Create), false),
            (rule(&["CREATE"], &["*"], &["*"], &["pods"], "*"), pod("", Operation::Update), false),
            (rule(&["CREATE"], &["apps"], &["*"], &["*"], "*"), pod("", Operation::Create), false),
            (rule(&["CREATE"], &["*"], &["v2"], &["pods"], "*"), pod("", Operation::Create), false),
            (rule(&["*"], &["*"], &["*"], &["*"], "Cluster"), pod("", Operation::Create), false),
            (rule(&["*"], &["*"], &["*"], &["*"], "Namespaced"), pod("", Operation::Create), true),
            (
                rule(&["*"], &["*"], &["*"], &["*"], "Namespaced"),
                attributes(&kinds::NAMESPACE, "", Operation::Update),
                false,
            ),
            (
                rule(&["*"], &["*"], &["*"], &["*"], "Cluster"),
                attributes(&kinds::NAMESPACE, "", Operation::Update),
                true,
            ),
        ];
        for (rule, attributes, wanted) in table {
            assert_eq!(meant(rule.clone(), "Exact", &attributes).is_some(), wanted, "{rule} {attributes:?}");
        }
    }

    #[test]
    fn another_version_of_the_same_objects_is_meant_too_unless_exact() {
        let scaler = attributes(&kinds::HORIZONTAL_POD_AUTOSCALER_V1, "", Operation::Create);
        let newer = rule(&["*"], &["autoscaling"], &["v2"], &["horizontalpodautoscalers"], "*");
        assert_eq!(meant(newer.clone(), "Equivalent", &scaler).as_deref(), Some("autoscaling/v2"));
        assert_eq!(meant(newer, "Exact", &scaler), None);
        let event = attributes(&kinds::EVENT, "", Operation::Create);
        let newer = rule(&["*"], &["events.k8s.io"], &["v1"], &["events"], "*");
        assert_eq!(meant(newer, "Equivalent", &event).as_deref(), Some("events.k8s.io/v1"));
        let back = attributes(&kinds::EVENT_REGARDING, "", Operation::Create);
        assert_eq!(meant(rule(&["*"], &[""], &["v1"], &["events"], "*"), "Equivalent", &back).as_deref(), Some("v1"));
    }

    #[test]
    fn resource_names_and_exclusions_of_policies() {
        let constraints = |written: Value| Constraints::read(&written).expect("constraints");
        let named =
            constraints(json!({ "resourceRules": [{ "operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"],
                "resources": ["pods"], "resourceNames": ["b"] }] }));
        let registry = Registry::built_in();
        let pod = attributes(&kinds::POD, "", Operation::Update);
        assert_eq!(named.resource(&registry, &pod), None);
        assert!(named.resource(&registry, &Attributes { name: "b".into(), ..pod.clone() }).is_some());
        let excluded = constraints(json!({
            "resourceRules": [rule(&["*"], &["*"], &["*"], &["*"], "*")],
            "excludeResourceRules": [rule(&["*"], &[""], &["v1"], &["pods"], "*")],
        }));
        assert_eq!(excluded.resource(&registry, &pod), None);
        assert!(excluded.resource(&registry, &attributes(&kinds::SECRET, "", Operation::Update)).is_some());
    }

    #[test]
    fn a_new_namespace_is_selected_by_its_own_labels_and_a_pod_by_its_namespaces() {
        use crate::api::tests::Cluster;
        let cluster = Cluster::new();
        let hook = json!({ "rules": [], "namespaceSelector": { "matchLabels": { "a": "b" } } });
        let constraints = Constraints::read(&hook).expect("constraints");
        let labelled = json!({ "metadata": { "name": "n", "labels": { "a": "b" } } });
        let bare = json!({ "metadata": { "name": "n" } });
        let mut batch = cluster.api.batch();
        let create = attributes(&kinds::NAMESPACE, "", Operation::Create);
        assert_eq!(constraints.selects(&mut batch, &create, Some(&labelled), None), Ok(true));
        assert_eq!(constraints.selects(&mut batch, &create, Some(&bare), None), Ok(false));
        // It is in itself, as upstream, and still none that is within another.
        assert_eq!(create.namespace, "a");
        let within = rule(&["*"], &[""], &["v1"], &["namespaces"], "Namespaced");
        assert_eq!(meant(within, "Exact", &create), None);
        let update = attributes(&kinds::NAMESPACE, "", Operation::Update);
        assert_eq!(constraints.selects(&mut batch, &update, Some(&bare), Some(&labelled)), Ok(false));
        let delete = attributes(&kinds::NAMESPACE, "", Operation::Delete);
        assert_eq!(constraints.selects(&mut batch, &delete, None, Some(&labelled)), Ok(true));
        let pod = Attributes::new(&kinds::POD, "", Operation::Create, "default", "p");
        assert_eq!(constraints.selects(&mut batch, &pod, Some(&labelled), None), Ok(false));
        let elsewhere = Attributes::new(&kinds::POD, "", Operation::Create, "nowhere", "p");
        assert_eq!(constraints.selects(&mut batch, &elsewhere, Some(&labelled), None).map_err(|s| s.code), Err(404));
        let node = Attributes::new(&kinds::NODE, "", Operation::Create, "", "n");
        assert_eq!(constraints.selects(&mut batch, &node, Some(&bare), None), Ok(true));
    }

    #[test]
    fn an_object_is_selected_by_what_it_is_or_was() {
        use crate::api::tests::Cluster;
        let cluster = Cluster::new();
        let hook = json!({ "objectSelector": { "matchLabels": { "a": "b" } } });
        let constraints = Constraints::read(&hook).expect("constraints");
        let (labelled, bare) = (json!({ "metadata": { "labels": { "a": "b" } } }), json!({ "metadata": {} }));
        let pod = Attributes::new(&kinds::POD, "", Operation::Update, "default", "p");
        let mut batch = cluster.api.batch();
        let mut selects = |new: Option<&Value>, old: Option<&Value>| constraints.selects(&mut batch, &pod, new, old);
        assert_eq!(selects(Some(&bare), Some(&labelled)), Ok(true));
        assert_eq!(selects(Some(&labelled), None), Ok(true));
        assert_eq!(selects(Some(&bare), Some(&bare)), Ok(false));
    }
}
