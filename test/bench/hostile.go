// SPDX-License-Identifier: Apache-2.0

//go:build hostile

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/wait"
	"github.com/meshd/meshd/test/hostile"
)

func init() {
	measurements = append(measurements, measurement{"hostile", runs, always(measureHostile)})
}

// atOnce are the attacks during which a newcomer joins.
var atOnce = []string{"silent streams", "tombstones"}

// measureHostile has a newcomer join while somebody keeps the victim's places for streams
// and another one fills its store. The other attacks follow, one after the other. When all
// are over and the attackers are revoked, the victim has some time to release resources.
func measureHostile(ctx context.Context, binary string, s samples) (err error) {
	b, err := hostile.NewBed(ctx, binary, hostile.Options{Settings: []string{"cluster:", "  mode: location"}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if err := wait.Sleep(ctx, calmTime); err != nil {
		return err
	}
	before, err := readUsage(b.Victim.PID())
	if err != nil {
		return err
	}
	var targets []*hostile.Target
	attack := func(name string, meanwhile func() error) error {
		t, err := b.Target(len(targets))
		if err != nil {
			return err
		}
		targets = append(targets, t)
		return during(ctx, t, name, meanwhile)
	}
	if err := attack(atOnce[0], func() error {
		return attack(atOnce[1], func() error {
			n, err := b.Join(ctx)
			if err != nil {
				return err
			}
			s.add("hostile_join_ms", milliseconds(n.Took))
			return b.Leave(ctx, n)
		})
	}); err != nil {
		return err
	}
	for _, a := range hostile.Attacks {
		if a.Keeps != (hostile.Usage{}) {
			continue // what it leaves behind is bounded, and may stay
		}
		if err := attack(a.Name, func() error { return wait.Sleep(ctx, time.Second) }); err != nil {
			return err
		}
	}
	for _, t := range targets {
		if err := t.Banish(ctx); err != nil {
			return err
		}
	}
	if err := wait.Sleep(ctx, idleTime); err != nil {
		return err
	}
	after, err := readUsage(b.Victim.PID())
	if err != nil {
		return err
	}
	s.add("hostile_rss_growth_mb", (after.rss-before.rss)/1e6)
	return nil
}

// during runs an attack, and something else after its first round.
func during(ctx context.Context, t *hostile.Target, name string, meanwhile func() error) error {
	for _, a := range hostile.Attacks {
		if a.Name != name {
			continue
		}
		attacking, stop := context.WithCancel(ctx)
		defer stop()
		var g errgroup.Group
		first := make(chan struct{})
		ended := make(chan struct{})
		g.Go(func() error {
			defer close(ended)
			return t.Run(attacking, a, first)
		})
		g.Go(func() error {
			defer stop()
			select {
			case <-first:
				return meanwhile()
			case <-ended:
				return nil // its error is the other's
			}
		})
		return g.Wait()
	}
	return fmt.Errorf("no attack %q", name)
}
