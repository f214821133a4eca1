//! What is compiled of a plugin and no longer needed is unloaded on a thread of its own, a piece at a time. The cache lets go of dozens
//! at once, in the middle of whichever request it happens to tidy up in; to unmap one's code, close its file and set back the places
//! of the pool that have its memories takes 50 to 200 us. Not here: what is let go of, and when (`host.rs`).

use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

/// Before each one: whoever let go of it has let go by then, and who maps or unmaps something for a request gets the kernel's lock.
const PAUSE: Duration = Duration::from_millis(1);
/// Those that wait have their files open and their code mapped: there is no pause while more do.
const WAITING_MAX: usize = 64;

/// The way to the thread, which ends with the last of these and of what they keep.
#[derive(Debug)]
pub(crate) struct Unloader<T> {
    sender: Sender<T>,
    waiting: Arc<AtomicUsize>,
}

impl<T> Clone for Unloader<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), waiting: Arc::clone(&self.waiting) }
    }
}

impl<T: Clone + Send + 'static> Unloader<T> {
    pub(crate) fn start() -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let waiting = Arc::default();
        let seen = Arc::clone(&waiting);
        thread::Builder::new().name("plugin-unload".to_owned()).spawn(move || unload(&receiver, &seen))?;
        Ok(Self { sender, waiting })
    }

    /// Has it unloaded on the thread when it is dropped. It must be cheap to clone, and the clones one thing.
    pub(crate) fn keep(&self, loaded: T) -> Loaded<T> {
        Loaded { loaded, unloader: self.clone() }
    }
}

fn unload<T>(gone: &Receiver<T>, waiting: &AtomicUsize) {
    for loaded in gone {
        if waiting.load(Ordering::Relaxed) <= WAITING_MAX {
            thread::sleep(PAUSE);
        }
        drop(loaded);
        waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is loaded; once it is dropped, the thread drops the last of it.
#[derive(Debug)]
pub(crate) struct Loaded<T: Clone> {
    loaded: T,
    unloader: Unloader<T>,
}

impl<T: Clone> Deref for Loaded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.loaded
    }
}

impl<T: Clone> Drop for Loaded<T> {
    fn drop(&mut self) {
        let Unloader { sender, waiting } = &self.unloader;
        waiting.fetch_add(1, Ordering::Relaxed);
        // The thread lives as long as a sender does.
        let _receiver_gone = sender.send(self.loaded.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells on which thread it is dropped.
    struct Witness(Sender<Option<String>>);

    impl Drop for Witness {
        fn drop(&mut self) {
            self.0.send(thread::current().name().map(str::to_owned)).expect("somebody listens");
        }
    }

    #[test]
    fn all_is_unloaded_on_the_thread_which_ends_with_the_last_of_it() {
        let (told, dropped) = mpsc::channel();
        let unloader = Unloader::start().expect("a thread");
        let count = 3 * WAITING_MAX;
        let loaded: Vec<_> = (0..count).map(|_| unloader.keep(Arc::new(Witness(told.clone())))).collect();
        let waiting = Arc::downgrade(&unloader.waiting);
        drop((unloader, told));
        assert!(dropped.try_recv().is_err(), "nothing is unloaded that is in use");
        drop(loaded);
        // The channel ends when the last one is gone.
        let threads: Vec<_> = dropped.iter().collect();
        assert_eq!(threads, vec![Some("plugin-unload".to_owned()); count]);
        while waiting.strong_count() > 0 {
            thread::sleep(PAUSE);
        }
    }

    #[test]
    fn what_is_still_used_elsewhere_stays() {
        let (told, dropped) = mpsc::channel();
        let unloader = Unloader::start().expect("a thread");
        let loaded = unloader.keep(Arc::new(Witness(told)));
        let used = Arc::clone(&loaded);
        drop((loaded, unloader));
        assert!(dropped.recv_timeout(20 * PAUSE).is_err(), "it is used");
        drop(used);
        assert!(dropped.recv().is_ok());
    }
}
