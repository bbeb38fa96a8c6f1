//! A bounded amount of something (threads, bytes in flight), of which no single user gets all: whoever wants more waits
//! for what that user already has, so that a busy user delays only itself (X7).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::lock;

/// An amount that is shared. Cloning shares it too.
#[derive(Clone, Debug)]
pub struct Shares {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    all: Arc<Semaphore>,
    each: u32,
    users: Mutex<BTreeMap<String, Weak<Semaphore>>>,
}

/// A part of the amount; given back when dropped.
#[derive(Debug)]
pub struct Share {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
    /// Kept so that the user's other requests find it.
    _user: Arc<Semaphore>,
}

impl Shares {
    /// `all` in all, of which one user gets at most `each`.
    pub fn new(all: u32, each: u32) -> Self {
        let each = each.clamp(1, all.max(1));
        let all = Arc::new(Semaphore::new(all.max(1) as usize));
        Self { inner: Arc::new(Inner { all, each, users: Mutex::default() }) }
    }

    /// Waits for a part, in the order of asking. More than a user may have counts as just that.
    pub async fn take(&self, user: &str, amount: u32) -> Share {
        let amount = amount.clamp(1, self.inner.each);
        let semaphore = self.user(user);
        loop {
            // Own requests first: who has too much waits here, and is in nobody's way.
            let own = semaphore.clone().acquire_many_owned(amount).await;
            let all = self.inner.all.clone().acquire_many_owned(amount).await;
            // Neither semaphore is ever closed.
            if let (Ok(own), Ok(all)) = (own, all) {
                return Share { _own: own, _all: all, _user: semaphore };
            }
        }
    }

    /// A part, if there is one now.
    pub fn try_take(&self, user: &str, amount: u32) -> Option<Share> {
        let amount = amount.clamp(1, self.inner.each);
        let semaphore = self.user(user);
        let own = semaphore.clone().try_acquire_many_owned(amount).ok()?;
        let all = self.inner.all.clone().try_acquire_many_owned(amount).ok()?;
        Some(Share { _own: own, _all: all, _user: semaphore })
    }

    fn user(&self, name: &str) -> Arc<Semaphore> {
        let mut users = lock(&self.inner.users);
        if let Some(known) = users.get(name).and_then(Weak::upgrade) {
            return known;
        }
        users.retain(|_, known| known.strong_count() > 0);
        let semaphore = Arc::new(Semaphore::new(self.inner.each as usize));
        users.insert(name.to_owned(), Arc::downgrade(&semaphore));
        semaphore
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn x7_one_user_never_has_everything() {
        let shares = Shares::new(4, 3);
        let held: Vec<Share> = std::iter::from_fn(|| shares.try_take("busy", 1)).collect();
        assert_eq!(held.len(), 3);
        let other = shares.try_take("other", 5);
        assert!(other.is_none(), "more than a share counts as a whole share, and there is only one left");
        assert!(shares.try_take("other", 1).is_some());
        let waiting = tokio::spawn({
            let shares = shares.clone();
            async move { shares.take("busy", 1).await }
        });
        drop(held);
        waiting.await.expect("gets its part");
        assert!(shares.try_take("other", 3).is_some(), "everything came back");
    }
}
