// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/meshd/meshd/internal/connect"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg/host"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/wait"
)

// A link makes this node a client of another cluster, and a router between the two.

// links runs this host's links.
type links struct {
	log      *slog.Logger
	resolver connect.Resolver
	run      func(context.Context, connect.Options) error
	remove   func(but []string) (removed []string, err error)
	changed  chan struct{} // has a value once a link is heard, or is no longer

	mu      sync.Mutex
	running map[string]*link // by name
}

// link is a link that runs.
type link struct {
	file  connect.File
	stop  context.CancelFunc
	ended chan struct{}

	heard bool      // some node of the other cluster answers
	since time.Time // that this is so
	err   error     // why it does not run now
}

// linkPatience is how long nothing may come by a link until that is a problem.
const linkPatience = 5 * time.Second

// linkRetry is how long to wait before a link that failed is started again.
const linkRetry = 5 * time.Second

func newLinks(log *slog.Logger) *links {
	return &links{log: log, resolver: net.DefaultResolver, run: connect.Run, remove: host.RemoveLinks, changed: make(chan struct{}, 1), running: make(map[string]*link)}
}

// runLinks ends the links with ctx. What they have set up stays.
func (d *daemon) runLinks(ctx context.Context, ready func()) error {
	ready()
	<-ctx.Done()
	return d.links.follow(ctx, nil)
}

// followLinks has the links of the configuration run, and no others. Before, the host must have been
// brought to what follows from them: it may have had routes to the same networks through another node.
func (d *daemon) followLinks(ctx context.Context) error {
	if d.linksFollowed {
		return nil
	}
	d.linksFollowed = true
	return d.links.follow(ctx, d.linkFiles)
}

// follow starts the links that don't run, and ends those that run and are no longer wanted. While ctx
// lives it removes from the host what these have set up.
func (l *links) follow(ctx context.Context, wanted []connect.LinkFile) error {
	names := make(map[string]connect.LinkFile)
	var keep []string
	for _, w := range wanted {
		names[w.Name] = w
		keep = append(keep, w.Name)
	}
	l.mu.Lock()
	var ended []*link
	for name, r := range l.running {
		if w, ok := names[name]; !ok || !reflect.DeepEqual(w.File, r.file) {
			r.stop()
			ended = append(ended, r)
			delete(l.running, name)
		}
	}
	l.mu.Unlock()
	for _, r := range ended {
		<-r.ended
	}
	if ctx.Err() != nil {
		return nil
	}
	removed, err := l.remove(keep)
	for _, name := range removed {
		l.log.Info("link removed", "link", name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range wanted {
		if l.running[w.Name] == nil {
			l.running[w.Name] = l.start(ctx, w)
		}
	}
	return err
}

// start runs a link until it is stopped.
func (l *links) start(ctx context.Context, w connect.LinkFile) *link {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	r := &link{file: w.File, stop: stop, ended: make(chan struct{}), since: time.Now()}
	o := connect.Options{
		Interface: w.Name, File: w.File, Logger: l.log.With("cluster", w.Name), Now: time.Now, Resolver: l.resolver,
		Link: func(heard bool) { l.set(r, heard, nil) },
	}
	go func() {
		defer close(r.ended)
		for ctx.Err() == nil {
			if err := l.run(ctx, o); err != nil && ctx.Err() == nil {
				l.set(r, false, err)
				_ = wait.Sleep(ctx, linkRetry)
			}
		}
	}()
	return r
}

func (l *links) set(r *link, heard bool, err error) {
	l.mu.Lock()
	r.heard, r.since, r.err = heard, time.Now(), err
	l.mu.Unlock()
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// state returns the links as a node's decisions need them, in the order of the files.
func (l *links) state(files []connect.LinkFile) []node.Link {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []node.Link
	for _, f := range files {
		r := l.running[f.Name]
		out = append(out, node.Link{Cluster: f.Name, Networks: slices.Clone(f.Networks()), Heard: r != nil && r.heard})
	}
	return out
}

// ProblemLink means that nothing comes from another cluster by a link.
const ProblemLink mesh.ProblemKind = "link"

// problems reports the links by which nothing comes.
func (l *links) problems(self string, now time.Time) []mesh.Problem {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []mesh.Problem
	for name, r := range l.running {
		switch {
		case errors.Is(r.err, host.ErrForeignDevice):
			out = append(out, mesh.Problem{
				Kind: ProblemLink, Node: self, Text: fmt.Sprintf("the link to %s can't be set up: another program has a device of that name", name),
				Advice: "give the file in node.links another name; then run: systemctl reload meshd",
			})
		case r.err != nil:
			out = append(out, mesh.Problem{
				Kind: ProblemLink, Node: self, Text: fmt.Sprintf("the link to %s can't be set up: %v", name, r.err),
				Advice: "mend what it names; meshd tries again every few seconds",
			})
		case !r.heard && now.Sub(r.since) >= linkPatience:
			out = append(out, mesh.Problem{
				Kind: ProblemLink, Node: self, Text: fmt.Sprintf("no node of %s answers by this node's link", name),
				Advice: "see on a node of that cluster that meshd client list has the client of the link's file, and that the endpoints in the file are reached from here",
			})
		}
	}
	return out
}
