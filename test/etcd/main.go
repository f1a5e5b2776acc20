// SPDX-License-Identifier: Apache-2.0

// Command etcd runs three members of etcd, as k3s embeds it, at three sites 80 ms apart between which
// one packet of a hundred is lost. They reach each other through meshd, while gateways fail, paths are cut
// and sites are lost. It prints how many elections etcd held over each event, and after what time all
// members that were left could write. With the timings wan it fails if there was an election while all
// sites were there.
//
// Without -duration each of the essential events happens once. With it, random events happen for half of
// that time with each set of timings, and it also fails if etcd with the timings wan was not writable within
// 10 s of the loss of a site.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

func main() {
	lab.Main()
	os.Exit(run())
}

func run() int {
	binary := flag.String("meshd", "bin/meshd", "the meshd to run")
	duration := flag.Duration("duration", 0, "how long to begin random events; 0 for one of each of the essential ones")
	seed := flag.Uint64("seed", 1, "which series of random events")
	settings := flag.String("member", "", "run a member of etcd with the configuration `file`, on one of the hosts")
	netem := flag.Bool("netem", true, "delay and lose packets between sites, for which the kernel needs netem")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	o := options{meshd: *binary, netem: *netem}
	var err error
	switch {
	case *settings != "":
		err = serve(*settings)
	case *duration == 0:
		err = short(ctx, o)
	default:
		err = soak(ctx, o, *duration, *seed)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "etcd: %v\n", err)
		return 1
	}
	return 0
}

// short has each of the essential events happen once, at the leader's site, with the timings wan.
func short(ctx context.Context, o options) (err error) {
	c, err := newCluster(ctx, o, mesh.EtcdWAN)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	for _, k := range essential {
		s, err := c.suffer(ctx, k, true)
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", k.name, err, c.report())
		}
		fmt.Println(s)
		if s.elections > 0 && !k.loss {
			return fmt.Errorf("%s: etcd held %d elections, want none\n%s", k.name, s.elections, c.report())
		}
	}
	return nil
}
