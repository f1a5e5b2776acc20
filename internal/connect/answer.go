// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

// Answers come over plain HTTP, so something in between, for example a pod that listens
// on the same port, could forge one. Therefore the node signs its answer; the signature
// also covers the cluster's name, the client's key and the nonce of the question.

const (
	configPath      = "/v1/config"
	headerIdentity  = "Meshd-Identity"  // the public key of the node's identity, base64
	headerSignature = "Meshd-Signature" // base64
	// answerDomain separates these signatures from those of everything else that nodes
	// sign.
	answerDomain = "meshd client answer v1\x00"
)

// question identifies one request; the answer's signature covers it.
type question struct {
	cluster string
	client  wgtypes.Key // the client's public key
	nonce   [32]byte    // random, against replayed answers
}

// newQuestion returns a question with a new nonce.
func newQuestion(cluster string, client wgtypes.Key) question {
	q := question{cluster: cluster, client: client}
	_, _ = rand.Read(q.nonce[:]) // it never fails, see crypto/rand
	return q
}

// query encodes the question as URL parameters.
func (q question) query() url.Values {
	return url.Values{
		"key":   {q.client.String()},
		"nonce": {base64.StdEncoding.EncodeToString(q.nonce[:])},
	}
}

// parseQuestion decodes the parameters that query has encoded.
func parseQuestion(cluster string, v url.Values) (q question, err error) {
	q.cluster = cluster
	if q.client, err = wgtypes.ParseKey(v.Get("key")); err != nil {
		return q, errors.New("the client's key is missing")
	}
	nonce, err := base64.StdEncoding.DecodeString(v.Get("nonce"))
	if err != nil || len(nonce) != len(q.nonce) {
		return q, fmt.Errorf("want a nonce of %d bytes", len(q.nonce))
	}
	q.nonce = [32]byte(nonce)
	return q, nil
}

// signedBytes returns the bytes that a signature covers. The encoding is unambiguous:
// only the cluster's name, which contains no zero byte, and the body, which comes last,
// vary in length.
func (q question) signedBytes(status int, body []byte) []byte {
	b := append([]byte(answerDomain), q.cluster...)
	b = append(append(append(b, 0), q.client[:]...), q.nonce[:]...)
	return append(binary.BigEndian.AppendUint16(b, uint16(status)), body...)
}

// sign adds the identity and the signature to an answer's header.
func (q question) sign(h http.Header, identity ed25519.PrivateKey, status int, body []byte) {
	h.Set(headerIdentity, base64.StdEncoding.EncodeToString(identity.Public().(ed25519.PublicKey)))
	h.Set(headerSignature, base64.StdEncoding.EncodeToString(ed25519.Sign(identity, q.signedBytes(status, body))))
}

// verify returns an error if an answer is not the given node's answer to this question.
func (q question) verify(node mesh.ID, h http.Header, status int, body []byte) error {
	identity, err := base64.StdEncoding.DecodeString(h.Get(headerIdentity))
	if err != nil || len(identity) != ed25519.PublicKeySize {
		return errors.New("the answer is not signed")
	}
	signature, err := base64.StdEncoding.DecodeString(h.Get(headerSignature))
	switch {
	case mesh.IDOf(identity) != node:
		return fmt.Errorf("the answer is from node %v, want %v", mesh.IDOf(identity), node)
	case err != nil || !ed25519.Verify(identity, q.signedBytes(status, body), signature):
		return errors.New("the answer's signature is not valid")
	}
	return nil
}
