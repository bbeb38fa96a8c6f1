//! Asking webhooks: who is asked, in which order, and what becomes of their answers, as upstream's dispatchers do it.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use mainstay_api::cel::{Budget, RUNTIME_BUDGET};
use mainstay_api::patch::{PatchType, apply_patch};
use mainstay_api::{Kind, Status};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::expression::{Authority, Inputs};
use super::matching::converted;
use super::policy::Case;
use super::review::{Question, Response};
use super::session::{Admitted, Ask, Phase, Session, checked, options};
use super::{Hook, policy};
use crate::api::{Api, Batch};

/// Answers above this are worked on apart from the threads that all connections share (bytes).
const LIGHT: usize = 64 << 10;

/// Why a webhook's answer is not what it should be.
#[derive(Debug)]
enum Failure {
    /// It could not be asked: its failure policy decides.
    Call(String),
    /// It refuses.
    Refused(Status),
    /// What it wants is impossible.
    Broken(Status),
}

/// The webhooks of a phase, with their numbers.
pub(super) fn hooks<'a>(session: &'a Session, phase: &Phase) -> impl Iterator<Item = (usize, &'a Arc<Hook>)> {
    let all = match phase {
        Phase::Validating => &session.set.validating,
        Phase::Mutating | Phase::Again(_) => &session.set.mutating,
    };
    all.iter().enumerate()
}

/// As which kind a webhook is shown the object; `None` where it is not asked.
pub(super) fn invocation(
    batch: &mut Batch<'_>,
    session: &Session,
    hook: &Hook,
    ask: &Ask,
    object: Option<&Value>,
) -> Result<Option<Kind>, Status> {
    if hook.constraints.rules.is_empty() {
        return Ok(None);
    }
    let registry = batch.registry.clone();
    let Some(resource) = hook.constraints.resource(&registry, &ask.attributes) else { return Ok(None) };
    let selected = hook.constraints.selects(batch, &ask.attributes, object, ask.old.as_ref())?;
    if !selected {
        return Ok(None);
    }
    if hook.conditions.is_empty() || conditions_hold(session, hook, ask, &resource, object)? {
        return Ok(Some(resource));
    }
    Ok(None)
}

/// Whether a webhook's match conditions hold; 403 for one that fails, unless failures are ignored.
fn conditions_hold(
    session: &Session,
    hook: &Hook,
    ask: &Ask,
    resource: &Kind,
    object: Option<&Value>,
) -> Result<bool, Status> {
    let case = Case { session, attributes: &ask.attributes, object, old: ask.old.as_ref() };
    let (new, old) = (policy::shown(&case, object, resource), policy::shown(&case, case.old, resource));
    let request = policy::request_of(&case, resource);
    let authority = Arc::new(Authority::new(session.requester.clone(), &ask.attributes));
    let inputs = Inputs::new(&new, &old, &request, authority);
    let mut budget = Budget::of(RUNTIME_BUDGET);
    let held = hook.conditions.hold(&inputs, &mut budget, hook.fails_open);
    held.map_err(|why| {
        let name = super::matching::name_of(&ask.attributes, object.or(case.old));
        Status::forbidden(&ask.attributes.kind, &name, &why)
    })
}

/// Answers a question: by webhooks one after the other where they may change the object, else by all at once.
pub(super) async fn ask(api: &Api, session: &Arc<Session>, ask: &Arc<Ask>) -> Result<Admitted, Status> {
    match ask.phase {
        Phase::Validating => validate(api, session, ask).await,
        Phase::Mutating | Phase::Again(_) => mutate(api, session, ask).await,
    }
}

async fn mutate(api: &Api, session: &Arc<Session>, ask: &Arc<Ask>) -> Result<Admitted, Status> {
    let mut admitted = Admitted::default();
    let mut invoked: BTreeSet<usize> = BTreeSet::new();
    let round = usize::from(matches!(ask.phase, Phase::Again(_)));
    for (index, hook) in hooks(session, &ask.phase) {
        if matches!(&ask.phase, Phase::Again(these) if !these.contains(&index)) {
            continue;
        }
        let object = admitted.changed.as_ref().or(ask.object.as_ref());
        let Some(resource) = invocation(&mut api.batch(), session, hook, ask, object)? else { continue };
        let answer = call(api, session, hook, ask, &resource, object, true).await;
        let patched = match answer {
            Ok(response) => {
                admitted.warnings.extend(response.warnings.iter().cloned());
                patch(hook, ask, &resource, object, response).await
            }
            Err(failure) => Err(failure),
        };
        let changed = match patched {
            Ok(changed) => changed,
            Err(Failure::Refused(status) | Failure::Broken(status)) => return Err(status),
            Err(Failure::Call(why)) => {
                fails(session, hook, &why, ("mutating", round, index))?;
                None
            }
        };
        if let Some(record) = session.record.as_ref() {
            let key = format!("mutation.webhook.admission.k8s.io/round_{round}_index_{index}");
            let note =
                json!({ "configuration": hook.configuration, "webhook": hook.name, "mutated": changed.is_some() });
            record.annotate(key, note.to_string());
        }
        if changed.is_some() {
            admitted.changed = changed;
            admitted.again.append(&mut invoked);
        }
        if hook.is_reinvoked {
            invoked.insert(index);
        }
    }
    admitted.again_if_changed = invoked;
    Ok(admitted)
}

async fn validate(api: &Api, session: &Arc<Session>, ask: &Arc<Ask>) -> Result<Admitted, Status> {
    let mut admitted = Admitted::default();
    let mut asked = JoinSet::new();
    for (index, hook) in hooks(session, &ask.phase) {
        let Some(resource) = invocation(&mut api.batch(), session, hook, ask, ask.object.as_ref())? else { continue };
        let (api, session, hook, ask) = (api.clone(), session.clone(), hook.clone(), ask.clone());
        asked.spawn(async move {
            let answer = call(&api, &session, &hook, &ask, &resource, ask.object.as_ref(), false).await;
            let judged = match answer {
                Ok(response) => Ok(response.warnings),
                Err(Failure::Refused(status) | Failure::Broken(status)) => Err(status),
                Err(Failure::Call(why)) => fails(&session, &hook, &why, ("validating", 0, index)).map(|()| Vec::new()),
            };
            (index, judged)
        });
    }
    let mut all = Vec::new();
    while let Some(answered) = asked.join_next().await {
        all.push(answered.map_err(|error| Status::internal(error.to_string()))?);
    }
    // In the order of the configurations, however fast each was.
    all.sort_by_key(|(index, _)| *index);
    for (_, judged) in all {
        admitted.warnings.extend(judged?);
    }
    Ok(admitted)
}

/// What a webhook that cannot be asked means: nothing, or 500 in upstream's words.
fn fails(session: &Session, hook: &Hook, why: &str, index: (&str, usize, usize)) -> Result<(), Status> {
    let words = format!("failed calling webhook {:?}: {why}", hook.name);
    if !hook.fails_open {
        return Err(Status::internal(words));
    }
    tracing::warn!(webhook = hook.name, why, "a webhook could not be asked; it is ignored, as its policy says");
    if let Some(record) = session.record.as_ref() {
        let (kind, round, index) = index;
        let key = format!("failed-open.{kind}.webhook.admission.k8s.io/round_{round}_index_{index}");
        record.annotate(key, hook.name.clone());
    }
    if session.left().is_none() {
        return Err(Status::timeout("request was canceled"));
    }
    Ok(())
}

/// Asks one webhook. What it allows comes back, what it does not is a failure.
async fn call(
    api: &Api,
    session: &Session,
    hook: &Hook,
    ask: &Ask,
    resource: &Kind,
    object: Option<&Value>,
    mutates: bool,
) -> Result<Response, Failure> {
    let terms = session.terms.get();
    let dry_run = terms.is_some_and(|terms| terms.dry_run);
    if dry_run && !hook.takes_dry_runs {
        let why = format!("admission webhook {:?} does not support dry run", hook.name);
        return Err(Failure::Broken(Status::bad_request(why)));
    }
    let Some(version) = hook.version else {
        return Err(Failure::Call("webhook does not accept known AdmissionReview versions (v1, v1beta1)".to_owned()));
    };
    let endpoint = hook.endpoint.as_ref().map_err(|why| Failure::Call(format!("could not get REST client: {why}")))?;
    let Some(left) = session.left() else {
        return Err(Failure::Call("failed to call webhook: context deadline exceeded".to_owned()));
    };
    let uid = crate::api::new_uid(&api.batch());
    let options = options(terms, &ask.attributes);
    let (user, old) = (&session.user, ask.old.as_ref());
    let question = Question { attributes: &ask.attributes, resource, object, old, user, dry_run, options: &options };
    let body = Bytes::from(question.review(version, &uid).to_string());
    let answer = endpoint.post(api, body, hook.timeout.min(left)).await;
    let answer = answer.map_err(|why| Failure::Call(format!("failed to call webhook: {why}")))?;
    let size = answer.len();
    let response =
        apart(size, move || Response::read(&answer, version, &uid, mutates)).await.map_err(Failure::Broken)?;
    let response = response.map_err(|why| Failure::Call(format!("received invalid webhook response: {why}")))?;
    if let Some(record) = session.record.as_ref() {
        for (key, value) in &response.annotations {
            record.annotate(format!("{}/{key}", hook.name), value.clone());
        }
    }
    if response.allowed { Ok(response) } else { Err(Failure::Refused(response.refusal(&hook.name))) }
}

/// Does work whose size is somebody else's choice.
///
/// # Errors
/// It panicked.
pub async fn apart<T: Send + 'static>(size: usize, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    if size <= LIGHT {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))
}

/// What an answer's patch makes of the object; `None` where nothing.
async fn patch(
    hook: &Hook,
    ask: &Ask,
    resource: &Kind,
    object: Option<&Value>,
    response: Response,
) -> Result<Option<Value>, Failure> {
    let Some(patch) = response.patch else { return Ok(None) };
    let Some(object) = object.cloned() else {
        let is_nothing = serde_json::from_slice::<Value>(&patch).is_ok_and(|patch| patch == json!([]));
        let why = format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        );
        return if is_nothing { Ok(None) } else { Err(Failure::Broken(Status::internal(why))) };
    };
    let (own, resource) = (ask.attributes.kind.clone(), resource.clone());
    let is_foreign = ask.attributes.object_type.is_some();
    let size = patch.len();
    let work = move || patched(&object, &own, &resource, is_foreign, &patch);
    apart(size, work).await.and_then(|patched| patched).map_err(Failure::Broken)
}

/// Applies a patch to the object in the form in which the webhook was shown it. 500 for one that does not fit, as
/// upstream.
pub(crate) fn patched(
    object: &Value,
    own: &Kind,
    resource: &Kind,
    is_foreign: bool,
    patch: &[u8],
) -> Result<Option<Value>, Status> {
    let shown = if is_foreign { object.clone() } else { converted(object, own, resource) };
    let broken = |status: Status| Status::internal(status.message);
    let mut new = apply_patch(resource, PatchType::Json, &shown, patch).map_err(broken)?;
    if !new.is_object() {
        return Err(Status::internal("the patch of a webhook leaves no object"));
    }
    if new == shown {
        return Ok(None);
    }
    if is_foreign {
        return Ok(Some(new));
    }
    checked(resource, &mut new)?;
    (resource.defaults)(resource, &mut new);
    Ok(Some(converted(&new, resource, own)))
}
