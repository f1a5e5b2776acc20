// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/connect"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// ProblemConfiguration means that the configuration file has changed, and this daemon could
// not take it over.
const ProblemConfiguration mesh.ProblemKind = "configuration"

// restartError is a change that takes effect only after a restart.
type restartError struct{ keys []string }

func (e restartError) Error() string {
	return fmt.Sprintf("new values of %s take effect only after a restart", strings.Join(e.keys, ", "))
}

// reload reads the configuration again and takes over all of it, or nothing. Why it failed
// stays a problem until a reload succeeds.
func (d *daemon) reload() {
	d.services.Notify(sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec())
	defer d.services.Notify(sd.SdNotifyReady)
	changed, err := d.takeConfig()
	d.reloadProblems = reloadProblems(d.cfg.Node.Name, d.opt.Config, err)
	if err == nil {
		d.log.Info("configuration reloaded", "changed", changed)
	}
}

// takeConfig takes over the configuration file and returns the keys that have changed.
// After an error nothing is taken over.
func (d *daemon) takeConfig() (changed []string, err error) {
	next, err := config.Load(d.opt.Config)
	if err != nil {
		return nil, err
	}
	changed, restart := config.Changed(d.cfg, next)
	if len(restart) > 0 {
		return nil, restartError{restart}
	}
	files, broken := connect.ReadLinks(d.opt.Config, next)
	if broken != nil {
		return nil, errors.Join(broken...)
	}
	if err := d.gossip.Reconfigure(next.Cluster, joinList(next), next.Secrets, next.Trusted); err != nil {
		return nil, err
	}
	d.cfg, d.linkFiles, d.linksFollowed = next, files, false
	return changed, nil
}

// checkFirstStart checks what has to be right before a node first writes anything. A node with
// a claim may have pods and starts in any case: a network that comes later is a problem and not
// an error, and stays the host's, see mesh.RangeOverlap.
func (d *daemon) checkFirstStart(ctx context.Context) error {
	saved, err := d.disk.dir.Node()
	if err != nil || saved.Claim.Slot != mesh.None {
		return err
	}
	facts, err := d.kernel.Facts(ctx)
	if err != nil {
		return err
	}
	return checkRanges(d.opt.Config, d.cfg, facts)
}

// checkRanges refuses ranges in which this host's own LAN lies: what the host sends there, or
// the mesh, would be lost.
func checkRanges(path string, cfg config.Config, facts netcfg.Facts) error {
	var errs []error
	for _, o := range facts.Nearby.Overlaps(cfg.Cluster) {
		if o.Network.LAN && !o.Network.Routed {
			errs = append(errs, &config.Error{File: path, Key: o.Key, Problem: fmt.Sprintf("%v overlaps %v", o.Range, o.Network), Advice: o.Advice()})
		}
	}
	return errors.Join(errs...)
}

// joinList returns the join list as gossip takes it, host:port.
func joinList(cfg config.Config) []string {
	join := make([]string, 0, len(cfg.Join))
	for _, j := range cfg.Join {
		join = append(join, j.String())
	}
	return join
}

// reloadProblems reports why a reload failed, one problem for each mistake in the file.
func reloadProblems(node, path string, err error) []mesh.Problem {
	if err == nil {
		return nil
	}
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	}
	problems := make([]mesh.Problem, 0, len(all))
	for _, err := range all {
		p := mesh.Problem{Kind: ProblemConfiguration, Node: node, Text: "not reloaded: " + err.Error(), Advice: "see that " + path + " can be read, then run: systemctl reload meshd"}
		var bad *config.Error
		var restart restartError
		switch {
		case errors.As(err, &bad):
			text := *bad
			text.Advice = ""
			p.Text, p.Advice = "not reloaded: "+text.Error(), bad.Advice+"; then run: systemctl reload meshd"
		case errors.As(err, &restart):
			p.Advice = "run: systemctl restart meshd; or put the old values back into " + path + ", and run: systemctl reload meshd"
		}
		problems = append(problems, p)
	}
	return problems
}
