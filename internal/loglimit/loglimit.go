// SPDX-License-Identifier: Apache-2.0

// Package loglimit keeps a log from repeating itself: as long as something is wrong, each
// attempt fails in the same way, and one line about it is enough.
package loglimit

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"time"
)

const (
	// again is after how long the same line is logged again.
	again = time.Hour
	// most is how many lines are remembered. Whoever causes more different ones has to be
	// bounded by a rate.
	most = 1024
)

// Limiter remembers which lines were logged. The zero value has seen none.
type Limiter struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// IsNew reports whether a line made of these parts is to be logged: the same one was not
// within the last hour. Ports of the other side, which differ with each attempt, do not
// make another line of it.
func (l *Limiter) IsNew(now time.Time, parts ...any) bool {
	key := keyOf(parts)
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, ok := l.last[key]; ok && now.Sub(at) < again {
		return false
	}
	if l.last == nil {
		l.last = make(map[string]time.Time)
	}
	if len(l.last) >= most {
		maps.DeleteFunc(l.last, func(_ string, at time.Time) bool { return now.Sub(at) >= again })
	}
	if len(l.last) < most {
		l.last[key] = now
	}
	return true
}

// Forget has the next line made of these parts count as new: the last one was not logged after
// all, because a rate refused it.
func (l *Limiter) Forget(parts ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.last, keyOf(parts))
}

// sourcePort is the port of this host in the text of a *net.OpError.
var sourcePort = regexp.MustCompile(`:\d+->`)

func keyOf(parts []any) string {
	var b strings.Builder
	for _, p := range parts {
		if a, ok := p.(netip.AddrPort); ok {
			p = a.Addr()
		}
		fmt.Fprintf(&b, "%v\n", p)
	}
	return sourcePort.ReplaceAllString(b.String(), "->")
}
