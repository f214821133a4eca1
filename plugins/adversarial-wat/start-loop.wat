;; Computes without end while it is instantiated.
(func $forever (loop (br 0)))
(start $forever)
