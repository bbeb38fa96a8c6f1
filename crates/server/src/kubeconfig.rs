//! Kubeconfigs that the server writes, some of which are also a person's: what is not ours in one stays in it.
//!
//! Ours are the entries `mainstay` and `mainstay@HOST:PORT`, and the user that they name. They are brought up to date
//! as `kubectl config set-…` does: fields that the server says nothing of (the namespace of a context) stay, and so
//! does the present context. Whatever would be lost by that is refused in words, and the file left as it is: comments,
//! a cluster of another CA under our name, a user of our name that belongs to another cluster. A file that has none of
//! our contexts and some of others is not written either: a person's commands go where that file says, and nobody said
//! that they should go elsewhere.

use std::path::{Path, PathBuf};

use mainstay_api::object;
use mainstay_api::schema::yaml;
use serde_json::{Value, json};

use crate::pki::{self, Durable, PkiError, replace_private};

/// Why a file is left as it is.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Refused {
    /// What is in it is no kubeconfig.
    #[error("it is not a kubeconfig and would be replaced; {HINT}")]
    Foreign,
    /// Something of somebody's would be lost.
    #[error("{0}; {HINT}")]
    Theirs(String),
    /// kubectl changes it, or did when it was stopped.
    #[error("it is being changed by kubectl; if it is not, remove {0}")]
    Busy(PathBuf),
}

/// How often, and how far apart, it is tried to be the one who changes a file.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

const HINT: &str = "name another file with --kubeconfig, and both in KUBECONFIG";

/// Why a kubeconfig was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// It is a person's.
    #[error("{path}: {why}")]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why.
        why: Refused,
    },
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] PkiError),
}

/// Brings a file up to a kubeconfig of ours.
///
/// # Errors
/// See [`WriteError`]; the file is as it was.
pub fn write(path: &Path, own: &str, durable: Durable) -> Result<(), WriteError> {
    let refused = |why| WriteError::Refused { path: path.to_owned(), why };
    let merged = || {
        let there = match std::fs::read(path) {
            Ok(there) => there,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(PkiError::File { path: path.to_owned(), source }.into()),
        };
        let there = std::str::from_utf8(&there).map_err(|_| refused(Refused::Foreign))?;
        merge(there, own).map_err(refused)
    };
    match merged()? {
        None => Ok(()),
        // Nothing of anybody's is in it.
        Some(text) if text == own => Ok(replace_private(path, text.as_bytes(), durable)?),
        Some(_) => {
            // What kubectl is about to write to it, it has read before.
            let _lock = Lock::take(path).ok_or_else(|| refused(Refused::Busy(Lock::path(path))))?;
            match merged()? {
                Some(text) => Ok(replace_private(path, text.as_bytes(), durable)?),
                None => Ok(()),
            }
        }
    }
}

/// The lock that kubectl takes while it changes a kubeconfig: a file beside it.
struct Lock(PathBuf);

impl Lock {
    fn path(of: &Path) -> PathBuf {
        let mut path = of.as_os_str().to_owned();
        path.push(".lock");
        path.into()
    }

    /// Waits a moment for whoever has it.
    fn take(of: &Path) -> Option<Self> {
        let path = Self::path(of);
        for _ in 0..LOCK_TRIES {
            match std::fs::OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(_) => return Some(Self(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => std::thread::sleep(LOCK_PAUSE),
                // Where none can be made, none is there: the write says what is wrong.
                Err(_) => return Some(Self(PathBuf::new())),
            }
        }
        None
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty()
            && let Err(error) = std::fs::remove_file(&self.0)
        {
            tracing::warn!(path = %self.0.display(), %error, "a lock stays");
        }
    }
}

/// The present context of a file, where that is not of this cluster: whoever uses the file has to name ours.
pub fn other_context(path: &Path) -> Option<String> {
    let config: Value = yaml::read(&std::fs::read_to_string(path).ok()?).ok()?;
    let present = object::text(&config, &["current-context"]);
    (!is_ours(present)).then(|| present.to_owned())
}

/// What is to stand in a file where `there` stands; `None`: the same.
///
/// # Errors
/// See [`Refused`].
fn merge(there: &str, own: &str) -> Result<Option<String>, Refused> {
    if there.trim().is_empty() || there == own {
        return Ok((there != own).then(|| own.to_owned()));
    }
    let (Ok(old), Ok(ours)) = (yaml::read::<Value>(there), serde_json::from_str::<Value>(own)) else {
        return Err(Refused::Foreign);
    };
    let is_list = |section: &str| {
        old[section].is_null()
            || old[section].as_array().is_some_and(|all| all.iter().all(|one| one["name"].is_string()))
    };
    if old["kind"] != "Config" || !["clusters", "users", "contexts"].into_iter().all(is_list) {
        return Err(Refused::Foreign);
    }
    let user = first(&ours, "users");
    if names(&old, "contexts").all(is_ours)
        && names(&old, "clusters").all(is_ours)
        && names(&old, "users").all(|name| name == user)
        && first_ca(&old) != first_ca(&ours)
    {
        // All of it is of a cluster that was here before.
        return Ok(Some(own.to_owned()));
    }
    refuse_what_is_theirs(&old, &ours, &user)?;
    let mut new = old.clone();
    for (section, inner) in [("clusters", "cluster"), ("users", "user"), ("contexts", "context")] {
        let mut all: Vec<Value> = Vec::new();
        for entry in ours[section].as_array().into_iter().flatten() {
            all.push(overlaid(&old, section, inner, entry));
        }
        let is_another = |entry: &&Value| {
            let name = object::text(entry, &["name"]);
            if section == "users" { name != user } else { !is_ours(name) }
        };
        all.extend(old[section].as_array().into_iter().flatten().filter(is_another).cloned());
        new[section] = all.into();
    }
    let present = object::text(&old, &["current-context"]);
    if present.is_empty() || is_ours(present) && !names(&new, "contexts").any(|name| name == present) {
        new["current-context"] = json!(pki::CONTEXT);
    }
    if new == old {
        return Ok(None);
    }
    let is_json = serde_json::from_str::<Value>(there).is_ok();
    if !is_json && has_comments(there) {
        return Err(Refused::Theirs("it has comments, which would be lost".to_owned()));
    }
    Ok(Some(format!("{new:#}\n")))
}

/// An entry of ours with what somebody added to it.
fn overlaid(old: &Value, section: &str, inner: &str, entry: &Value) -> Value {
    let known = old[section].as_array().into_iter().flatten().find(|known| known["name"] == entry["name"]);
    let mut new = known.cloned().unwrap_or_else(|| json!({}));
    new["name"] = entry["name"].clone();
    if !new[inner].is_object() {
        new[inner] = json!({});
    }
    for (field, value) in entry[inner].as_object().into_iter().flatten() {
        new[inner][field.as_str()] = value.clone();
    }
    new
}

fn refuse_what_is_theirs(old: &Value, ours: &Value, user: &str) -> Result<(), Refused> {
    let theirs = |why: String| Err(Refused::Theirs(why));
    for section in ["clusters", "users", "contexts"] {
        let mut all: Vec<&str> = names(old, section).collect();
        all.sort_unstable();
        if all.windows(2).any(|two| two[0] == two[1]) {
            return theirs(format!("two of its {section} have one name"));
        }
    }
    if names(old, "contexts").next().is_some() && !names(old, "contexts").any(is_ours) {
        return theirs("it has other clusters than this one".to_owned());
    }
    for cluster in old["clusters"].as_array().into_iter().flatten() {
        let name = object::text(cluster, &["name"]);
        if is_ours(name) && ca(cluster) != first_ca(ours) {
            return theirs(format!("its cluster {name} is another one than this"));
        }
    }
    for context in old["contexts"].as_array().into_iter().flatten() {
        let (of, cluster) =
            (object::text(context, &["context", "user"]), object::text(context, &["context", "cluster"]));
        if of == user && !is_ours(cluster) {
            let name = object::text(context, &["name"]);
            return theirs(format!("its user {user} is that of the context {name} at another cluster"));
        }
    }
    Ok(())
}

fn is_ours(name: &str) -> bool {
    name == pki::CONTEXT || name.strip_prefix(pki::CONTEXT).is_some_and(|rest| rest.starts_with('@'))
}

fn names<'a>(config: &'a Value, section: &str) -> impl Iterator<Item = &'a str> + use<'a> {
    config[section].as_array().into_iter().flatten().filter_map(|entry| entry["name"].as_str())
}

fn first(config: &Value, section: &str) -> String {
    names(config, section).next().unwrap_or_default().to_owned()
}

fn ca(cluster: &Value) -> &str {
    object::text(cluster, &["cluster", "certificate-authority-data"])
}

fn first_ca(config: &Value) -> &str {
    config["clusters"].as_array().and_then(|all| all.first()).map_or("", ca)
}

/// Whether a text in YAML may have a comment: a `#` in a quoted text with a blank before it counts as one, too.
fn has_comments(text: &str) -> bool {
    text.lines().any(|line| line.starts_with('#') || line.contains(" #") || line.contains("\t#"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Identity;

    fn own(server: &str, ca: &str) -> String {
        let identity = Identity { certificate: format!("of {server}"), key: "k".to_owned() };
        pki::kubeconfig(&[server.to_owned(), "b:1".to_owned()], ca, "kubernetes-admin", &identity)
    }

    /// The file after somebody changed it.
    fn changed(change: impl Fn(&mut Value)) -> String {
        let mut config: Value = serde_json::from_str(&own("a:1", "CA")).expect("JSON");
        change(&mut config);
        yaml::write(&config)
    }

    fn merged(there: &str) -> Value {
        let text = merge(there, &own("c:1", "CA")).expect("merged").expect("changed");
        serde_json::from_str(&text).expect("JSON")
    }

    fn push(config: &mut Value, section: &str, entry: Value) {
        config[section].as_array_mut().expect("a list").push(entry);
    }

    fn with_work(config: &mut Value) {
        push(config, "clusters", json!({ "name": "work", "cluster": { "server": "https://work" } }));
        push(config, "users", json!({ "name": "me", "user": { "token": "t" } }));
        push(config, "contexts", json!({ "name": "work", "context": { "cluster": "work", "user": "me" } }));
    }

    #[test]
    fn what_somebody_added_to_a_kubeconfig_stays_in_it() {
        let there = changed(|config| {
            with_work(config);
            push(
                config,
                "contexts",
                json!({ "name": "db", "context": { "cluster": "mainstay",
                "user": "kubernetes-admin", "namespace": "db" } }),
            );
            config["contexts"][0]["context"]["namespace"] = json!("web");
            config["current-context"] = json!("work");
            config["extensions"] = json!([{ "name": "x", "extension": { "a": 1 } }]);
        });
        let config = merged(&there);
        assert_eq!(config["clusters"][0]["cluster"]["server"], "https://c:1");
        assert_eq!(config["contexts"][0]["context"]["namespace"], "web", "as `kubectl config set-context` said");
        let names = |section: &str| names(&config, section).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(names("contexts"), ["mainstay", "mainstay@b:1", "work", "db"]);
        assert_eq!((names("clusters").len(), names("users").len()), (3, 2));
        assert_eq!(config["users"][1]["user"]["token"], "t");
        assert_eq!((&config["current-context"], &config["extensions"][0]["name"]), (&json!("work"), &json!("x")));
        // What is as it should be is not written: not even its form changes, nor its comments.
        let settled = format!("# mine\n{}", yaml::write(&config));
        assert_eq!(merge(&settled, &own("c:1", "CA")), Ok(None));
    }

    #[test]
    fn a_kubeconfig_of_ours_is_brought_up_to_date_and_one_of_a_former_cluster_is_replaced() {
        let ours = own("c:1", "CA");
        for there in ["", "\n", &own("a:1", "former"), "kind: Config\n"] {
            let merged = merge(there, &ours).expect("merged").expect("changed");
            let (merged, ours): (Value, Value) =
                (serde_json::from_str(&merged).expect("JSON"), serde_json::from_str(&ours).expect("JSON"));
            assert_eq!(merged["contexts"], ours["contexts"], "{there}");
            assert_eq!((&merged["users"], &merged["current-context"]), (&ours["users"], &json!("mainstay")));
        }
        assert_eq!(merge(&ours, &ours), Ok(None));
    }

    /// kubectl reads a kubeconfig, and writes what it made of that.
    #[test]
    fn a_kubeconfig_that_kubectl_changes_is_left_to_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, ours) = (folder.path().join("config"), own("c:1", "CA"));
        let lock = Lock::path(&path);
        std::fs::write(&path, changed(with_work)).expect("written");
        std::fs::write(&lock, "").expect("locked");
        let busy = write(&path, &ours, Durable::No).expect_err("busy").to_string();
        assert!(busy.contains("config.lock"), "{busy}");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), changed(with_work));
        std::fs::remove_file(&lock).expect("unlocked");
        write(&path, &ours, Durable::No).expect("written");
        let text = std::fs::read_to_string(&path).expect("read");
        assert!(text.contains("https://c:1") && text.contains("https://work") && !lock.exists(), "{text}");
        // One of ours alone is nobody's to lock.
        std::fs::write(&lock, "").expect("locked");
        std::fs::write(&path, own("a:1", "former")).expect("written");
        write(&path, &ours, Durable::No).expect("written");
    }

    #[test]
    fn what_would_be_lost_is_refused_in_words() {
        let others = "kind: Config\ncontexts: [{name: work, context: {}}]\n".to_owned();
        let table = [
            ("a list of mine".to_owned(), "not a kubeconfig"),
            ("[1]".to_owned(), "not a kubeconfig"),
            ("kind: Config\ncontexts: [{}]\n".to_owned(), "not a kubeconfig"),
            (others, "other clusters"),
            (format!("# mine\n{}", changed(with_work)), "comments"),
            (
                changed(|config| {
                    with_work(config);
                    config["clusters"][0]["cluster"]["certificate-authority-data"] = json!("b3RoZXI=");
                }),
                "cluster mainstay is another",
            ),
            (
                changed(|config| {
                    with_work(config);
                    config["contexts"][2]["context"]["user"] = json!("kubernetes-admin");
                }),
                "of the context work",
            ),
            (
                changed(|config| {
                    with_work(config);
                    push(config, "users", json!({ "name": "me", "user": { "token": "another" } }));
                }),
                "have one name",
            ),
        ];
        for (there, why) in table {
            let refused = merge(&there, &own("c:1", "CA")).expect_err(why).to_string();
            assert!(refused.contains(why) && refused.contains("--kubeconfig"), "{refused}");
        }
    }
}
