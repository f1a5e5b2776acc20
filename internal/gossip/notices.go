// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/meshd/meshd/internal/loglimit"
	"github.com/meshd/meshd/internal/mesh"
)

// Kinds of problems that gossip reports in its View.
const (
	// ProblemSecret: a node that we tried to join has another secret.
	ProblemSecret mesh.ProblemKind = "wrong-secret"
	// ProblemCluster: a node has another cluster name or other ranges, and is refused.
	ProblemCluster mesh.ProblemKind = "cluster-differs"
	// ProblemSettings: a node has other, less important settings, with the same
	// generation or in an older file; or its record was made with other ranges and is
	// ignored.
	ProblemSettings mesh.ProblemKind = "settings-differ"
	// ProblemSequence: one identity has signed two different objects with the same
	// sequence.
	ProblemSequence mesh.ProblemKind = "sequence-conflict"
	// ProblemFull: there are more objects than a node stores.
	ProblemFull mesh.ProblemKind = "store-full"
	// ProblemForged: a host with the secret sends objects that none of our nodes would
	// make.
	ProblemForged mesh.ProblemKind = "forged-object"
	// ProblemUntrusted: a node is not on the list of trusted nodes.
	ProblemUntrusted mesh.ProblemKind = "untrusted"
	// ProblemJoin: an entry of the join list has never answered, or does not while no other
	// node is alive.
	ProblemJoin mesh.ProblemKind = "no-seed"
	// ProblemRevoked: our own identity was revoked.
	ProblemRevoked mesh.ProblemKind = "revoked"
)

// notices are problems that were seen on the network. Each is shown until it has not been
// seen for noticeFor.
type notices struct {
	now func() time.Time

	mu       sync.Mutex
	lastSeen map[notice]time.Time
}

type notice struct {
	problem mesh.Problem
	where   string // the address or node where it was seen, by which it is resolved
}

// maxNotices is more than a person will read.
const maxNotices = 64

// add records a problem.
func (n *notices) add(where string, p mesh.Problem) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.expire()
	key := notice{p.Printable(), where}
	_, old := n.lastSeen[key]
	if old || len(n.lastSeen) < maxNotices {
		n.lastSeen[key] = n.now()
	}
}

// resolve removes the problems of the given kinds that were seen at a place.
func (n *notices) resolve(where string, kinds ...mesh.ProblemKind) {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.lastSeen, func(k notice, _ time.Time) bool {
		return k.where == where && slices.Contains(kinds, k.problem.Kind)
	})
}

func (n *notices) clear() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.lastSeen)
}

func (n *notices) problems() []mesh.Problem {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.expire()
	var all []mesh.Problem
	for k := range n.lastSeen {
		all = append(all, k.problem)
	}
	return all
}

func (n *notices) expire() {
	now := n.now()
	maps.DeleteFunc(n.lastSeen, func(_ notice, at time.Time) bool { return now.Sub(at) > noticeFor })
}

// limitedLog limits the rate of messages that unknown hosts can cause, so that they can't
// fill a disk. Each message has a limit of its own, so that a flood of one does not
// suppress the others. The same line is not repeated, except among the details of debug.
type limitedLog struct {
	log  *slog.Logger
	said loglimit.Limiter

	mu       sync.Mutex
	limiters map[string]*rate.Limiter // by message, of which there are few
}

func newLimitedLog(log *slog.Logger) *limitedLog {
	return &limitedLog{log: log, limiters: make(map[string]*rate.Limiter)}
}

// logBurst is how many lines of one message may come at once; after that, one per second.
const logBurst = 10

func (l *limitedLog) at(level slog.Level, message string, args ...any) {
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	parts := append([]any{message}, args...)
	if level > slog.LevelDebug && !l.said.IsNew(time.Now(), parts...) {
		return
	}
	if !l.allow(message) {
		l.said.Forget(parts...)
		return
	}
	l.log.Log(context.Background(), level, message, args...)
}

func (l *limitedLog) allow(message string) bool {
	return l.limit(message, time.Second, logBurst)
}

// limit reports whether one more line of a kind may be logged: a few at once, then one in
// each period.
func (l *limitedLog) limit(kind string, period time.Duration, burst int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	limiter := l.limiters[kind]
	if limiter == nil {
		limiter = rate.NewLimiter(rate.Every(period), burst)
		l.limiters[kind] = limiter
	}
	return limiter.Allow()
}

// KeyReport is the key of a text of memberlist in the log, which may have fingerprints of nodes.
const KeyReport = "report"

// memberlistLog receives memberlist's log lines. Memberlist calls an unreachable node an
// error, but in a mesh that is normal, so the levels are lowered.
type memberlistLog struct{ log *limitedLog }

var _ io.Writer = memberlistLog{}

// repeatedLines are prefixes of lines that memberlist repeats with each probe, as long as
// a condition lasts.
var repeatedLines = []string{"Was able to connect to", "Refuting", "Got ping for unexpected node", "ignoring alive message"}

// Write receives one line, as package log writes them.
func (m memberlistLog) Write(line []byte) (int, error) {
	level := slog.LevelDebug
	text := bytes.TrimSpace(line)
	for prefix, l := range map[string]slog.Level{"[WARN]": slog.LevelInfo, "[ERR]": slog.LevelInfo, "[ERROR]": slog.LevelInfo} {
		if rest, ok := bytes.CutPrefix(text, []byte(prefix)); ok {
			level, text = l, rest
			break
		}
	}
	text = bytes.TrimSpace(bytes.TrimPrefix(bytes.TrimSpace(text), []byte("memberlist:")))
	for _, begin := range repeatedLines {
		if bytes.HasPrefix(text, []byte(begin)) && !m.log.limit(begin, time.Minute, 1) {
			return len(line), nil
		}
	}
	m.log.at(level, "memberlist reports", KeyReport, mesh.Printable(string(text), mesh.MaxText))
	return len(line), nil
}
