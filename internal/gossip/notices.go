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

	"github.com/meshd/meshd/internal/mesh"
)

// Kinds of problems that gossip reports in its View.
const (
	// ProblemSecret: a node that we tried to join has another secret.
	ProblemSecret mesh.ProblemKind = "wrong-secret"
	// ProblemCluster: a node has another cluster name or other ranges, and is
	// refused.
	ProblemCluster mesh.ProblemKind = "cluster-differs"
	// ProblemSettings: a node has other settings that matter less, of the same
	// generation or in an older file, or its record was made with other ranges
	// and is left out.
	ProblemSettings mesh.ProblemKind = "settings-differ"
	// ProblemSequence: one identity has signed two objects with one sequence.
	ProblemSequence mesh.ProblemKind = "sequence-conflict"
	// ProblemFull: there are more objects than a node keeps.
	ProblemFull mesh.ProblemKind = "store-full"
	// ProblemTwin: our own identity is used by another running daemon.
	ProblemTwin mesh.ProblemKind = "identity-elsewhere"
	// ProblemForged: somebody with the secret sends objects that no node of ours
	// would make.
	ProblemForged mesh.ProblemKind = "forged-object"
	// ProblemUntrusted: a node is not on the list of those whose word counts.
	ProblemUntrusted mesh.ProblemKind = "untrusted"
	// ProblemJoin: nobody of the join list answers, and nobody else is alive.
	ProblemJoin mesh.ProblemKind = "no-seed"
	// ProblemRevoked: our own identity was revoked.
	ProblemRevoked mesh.ProblemKind = "revoked"
)

// notices are problems that were met on the network. Each is shown until it
// has not been met for noticeFor.
type notices struct {
	now func() time.Time

	mu  sync.Mutex
	met map[notice]time.Time
}

type notice struct {
	problem mesh.Problem
	where   string // what it was met at, by which it is taken back
}

// maxNotices is more than a person would read.
const maxNotices = 64

// meet notes a problem, and says whether it is a new one.
func (n *notices) meet(where string, p mesh.Problem) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.expire()
	key := notice{p.Printable(), where}
	_, old := n.met[key]
	if old || len(n.met) < maxNotices {
		n.met[key] = n.now()
	}
	return !old
}

// settle takes back what was met at a place, of the given kinds.
func (n *notices) settle(where string, kinds ...mesh.ProblemKind) {
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.met, func(k notice, _ time.Time) bool {
		return k.where == where && slices.Contains(kinds, k.problem.Kind)
	})
}

func (n *notices) clear() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.met)
}

func (n *notices) problems() []mesh.Problem {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.expire()
	var all []mesh.Problem
	for k := range n.met {
		all = append(all, k.problem)
	}
	return all
}

func (n *notices) expire() {
	now := n.now()
	maps.DeleteFunc(n.met, func(_ notice, at time.Time) bool { return now.Sub(at) > noticeFor })
}

// counters count what was dropped, by reason.
type counters struct {
	mu     sync.Mutex
	counts map[string]uint64
}

func (c *counters) add(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[reason]++
}

func (c *counters) snapshot() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.counts)
}

// limitedLog logs what strangers can cause, so that they can't fill a disk.
// Each message has a limit of its own: a flood of one hides no other.
type limitedLog struct {
	log *slog.Logger

	mu       sync.Mutex
	limiters map[string]*rate.Limiter // by message, of which there are few
}

func newLimitedLog(log *slog.Logger) *limitedLog {
	return &limitedLog{log: log, limiters: make(map[string]*rate.Limiter)}
}

// logBurst lines of one message may come at once, then one a second.
const logBurst = 10

func (l *limitedLog) at(level slog.Level, message string, args ...any) {
	if l.log.Enabled(context.Background(), level) && l.allow(message) {
		l.log.Log(context.Background(), level, message, args...)
	}
}

func (l *limitedLog) allow(message string) bool {
	return l.limit(message, time.Second, logBurst)
}

// limit says whether one more line of a kind may be logged: a few at once, then
// one in each period.
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

// memberlistLog takes memberlist's lines. To it, an unreachable node is an
// error; to a mesh it is everyday life.
type memberlistLog struct{ log *limitedLog }

var _ io.Writer = memberlistLog{}

// lasting begin the lines that memberlist repeats with each probe, for as long
// as something lasts.
var lasting = []string{"Was able to connect to", "Refuting", "Got ping for unexpected node", "ignoring alive message"}

// Write takes one line, as package log hands them over.
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
	for _, begin := range lasting {
		if bytes.HasPrefix(text, []byte(begin)) && !m.log.limit(begin, time.Minute, 1) {
			return len(line), nil
		}
	}
	m.log.at(level, "memberlist reports", "text", mesh.Printable(string(text), mesh.MaxText))
	return len(line), nil
}
