// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"syscall"
	"time"
)

// Client talks to a running daemon.
type Client struct {
	http http.Client
	path string
}

// answerTimeout bounds a request. The daemon answers most at once; plan reads the host's
// state first, and drain waits for another gateway.
const answerTimeout = 30 * time.Second

// NewClient returns a client of the daemon with the given run directory. It does not
// connect yet.
func NewClient(runDir string) *Client {
	path := SocketPath(runDir)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if errors.Is(err, os.ErrPermission) {
			if read, readErr := new(net.Dialer).DialContext(ctx, "unix", ReadSocketPath(runDir)); readErr == nil {
				return read, nil
			}
		}
		return c, err
	}
	return &Client{path: path, http: http.Client{
		Timeout: answerTimeout, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true},
	}}
}

// Status returns the daemon's status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.do(ctx, http.MethodGet, "/v1/status", &s)
}

// Plan returns what the daemon would change on the host.
func (c *Client) Plan(ctx context.Context) (Plan, error) {
	var p Plan
	return p, c.do(ctx, http.MethodGet, "/v1/plan", &p)
}

// Forget asks the daemon to drop the records of a node.
func (c *Client) Forget(ctx context.Context, node string) error {
	return c.do(ctx, http.MethodPost, "/v1/forget?"+url.Values{"node": {node}}.Encode(), &struct{}{})
}

// Revoke asks the daemon to drop the records of a node and never to accept new ones.
func (c *Client) Revoke(ctx context.Context, node string) (Revoked, error) {
	var r Revoked
	return r, c.do(ctx, http.MethodPost, "/v1/revoke?"+url.Values{"node": {node}}.Encode(), &r)
}

// RotateSecret asks the daemon to do the next round in which all nodes exchange their secret.
func (c *Client) RotateSecret(ctx context.Context) (Rotated, error) {
	var r Rotated
	return r, c.do(ctx, http.MethodPost, "/v1/secret/rotate", &r)
}

// Renumber asks the daemon to give up its slot for another one.
func (c *Client) Renumber(ctx context.Context, force bool) (Renumbered, error) {
	var r Renumbered
	return r, c.do(ctx, http.MethodPost, "/v1/renumber?"+url.Values{"force": {strconv.FormatBool(force)}}.Encode(), &r)
}

// do sends a request without a body. Its errors wrap ErrNotRunning or ErrRefused where
// they apply.
func (c *Client) do(ctx context.Context, method, path string, into any) error {
	return c.send(ctx, method, path, nil, into)
}

// send sends a request and decodes the answer. Its errors are those of do.
func (c *Client) send(ctx context.Context, method, path string, body []byte, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://meshd"+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nobody listens at %s", ErrNotRunning, c.path)
	case err != nil:
		return fmt.Errorf("ask meshd: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return answerError(resp)
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("read meshd's answer: %w", err)
	}
	return nil
}

// answerError returns the error of an answer that is not 200.
func answerError(resp *http.Response) error {
	var f failure
	if err := json.NewDecoder(resp.Body).Decode(&f); err != nil {
		return fmt.Errorf("read meshd's answer %s: %w", resp.Status, err)
	}
	switch resp.StatusCode {
	case http.StatusForbidden:
		return errForbidden
	case http.StatusConflict:
		// The text already begins with that of ErrRefused, so don't wrap it again.
		return refusal(f.Error)
	}
	return errors.New(f.Error)
}

// refusal is the text of an ErrRefused that the daemon has returned.
type refusal string

func (r refusal) Error() string   { return string(r) }
func (refusal) Is(err error) bool { return err == ErrRefused }
